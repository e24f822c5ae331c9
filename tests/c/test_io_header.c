/* The safetensors header reader: what a correct header gives, and that no wrong one gets through. */
#include "support.h"

#include <inttypes.h>
#include <string.h>

#include "io/header.h"
#include "io/json_object.h"

static dw_status parse(const char *text, uint64_t data_bytes, dw_header *header) {
    /* An exact copy, so that a read beyond the text is a read beyond its memory. */
    size_t length = strlen(text);
    char *copy = malloc(length ? length : 1);
    memcpy(copy, text, length);
    dw_status status = dw_header_parse("FILE", copy, length, data_bytes, header);
    free(copy);
    return status;
}

static void expect_failure(const char *text, uint64_t data_bytes, dw_status status, const char *part) {
    dw_header header;
    dw_status got = parse(text, data_bytes, &header);
    if (got == DW_OK) fail_msg("accepted: %.300s", text);
    assert_failure(got, status, part);
    assert_null(strchr(dw_last_error(), '\n'));
    assert_null(header.tensors); /* nothing is left to free */
}

static void correct(void **state) {
    (void)state;
    dw_header header;
    ASSERT_OK(parse("{\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
                    "\"__metadata__\":{\"k\":\"v\",\"\\u00e9\\n\":\"\"},"
                    "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                    "\"zero\":{\"dtype\":\"I64\",\"shape\":[0,7],\"data_offsets\":[28,28]},"
                    "\"scalar\":{\"data_offsets\":[28,29],\"shape\":[],\"dtype\":\"U8\"}}   ",
                    29, &header));
    assert_int_equal(header.tensor_count, 4);
    assert_string_equal(header.tensors[0].name, "a");
    assert_string_equal(header.tensors[1].name, "b");
    assert_string_equal(header.tensors[2].name, "zero");
    assert_string_equal(header.tensors[3].name, "scalar");
    const dw_file_tensor *b = dw_header_find(&header, "b");
    assert_non_null(b);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->begin, 4);
    assert_int_equal(b->end, 28);
    assert_null(dw_header_find(&header, "c"));
    assert_string_equal(dw_header_metadata(&header, "k"), "v");
    assert_string_equal(dw_header_metadata(&header, "\xc3\xa9\n"), "");
    assert_null(dw_header_metadata(&header, "missing"));
    dw_header_clear(&header);
}

static void empty(void **state) {
    (void)state;
    dw_header header;
    ASSERT_OK(parse("{}", 0, &header));
    assert_int_equal(header.tensor_count, 0);
    assert_null(dw_header_find(&header, "a"));
    dw_header_clear(&header);
    expect_failure("{}", 1, DW_ERROR_CORRUPT, "belong to none");
    expect_failure("", 0, DW_ERROR_CORRUPT, "does not start with {");
}

/* Every prefix of a correct text is a truncated one. */
static void truncated(void **state) {
    (void)state;
    static const char text[] = "{\"__metadata__\":{\"a\":\"\\\"b\"},\"x\":{\"dtype\":\"F4\",\"shape\":[2,2],"
                               "\"data_offsets\":[0,2]}}";
    dw_header header;
    ASSERT_OK(parse(text, 2, &header));
    dw_header_clear(&header);
    char prefix[sizeof text];
    for (size_t length = 0; length + 1 < sizeof text; length++) {
        memcpy(prefix, text, length);
        prefix[length] = '\0';
        expect_failure(prefix, 2, DW_ERROR_CORRUPT, "FILE");
    }
}

static void broken_json(void **state) {
    (void)state;
    static const char *const texts[] = {
        "[]",
        "null",
        "\"a\"",
        " {}",
        "{} {}",
        "{},",
        "{]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\" 1}",
        "{a:1}",
        "{,}",
        "{\"a\":1,}",
        "{\"\\x\":{}}",
        "{\"\\ud800\":{}}",
        "{\"\\u0000\":{}}",
        "{\"a\":[1}",
        "{\"a\":1]}",
        "{\"a\":{]}",
        "{\"a\n\":{}}",
        "{\"\xff\":{}}",
        "{\"\xc0\xaf\":{}}",
        "{\"\xed\xa0\x80\":{}}",
        "{\"a\":\"\xfe\"}",
        "{\"a\":{\"dtype\":\"\x80\"}}",
        "{\"a\":nul}",
        "{\"a\":{}}{",
        "{\"\\",
        "{\"a\":\"\\",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        expect_failure(texts[i], 0, DW_ERROR_CORRUPT, "FILE");
}

static void duplicates(void **state) {
    (void)state;
    expect_failure("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                   "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                   2, DW_ERROR_CORRUPT, "two tensors are named a");
    /* The same name in another spelling. */
    expect_failure("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                   "\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                   2, DW_ERROR_CORRUPT, "two tensors are named a");
    expect_failure("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                   DW_ERROR_CORRUPT, "duplicate");
    expect_failure("{\"__metadata__\":{},\"__metadata__\":{}}", 0, DW_ERROR_CORRUPT, "two __metadata__");
    expect_failure("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, DW_ERROR_CORRUPT, "two metadata entries");
}

static void wrong_members(void **state) {
    (void)state;
    static const char *const descriptions[] = {
        "1",
        "[]",
        "\"U8\"",
        "{}",
        "{\"dtype\":\"U8\",\"shape\":[1]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":0}",
        "{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[true],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{\"0\":0,\"1\":1}}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.0]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,2]}",
        "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,18446744073709551615]}",
        "{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,0]}",
        "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}",
        "{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}",
        "{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}",
        "{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,1]}",
        "{\"dtype\":\"F6_E2M3\",\"shape\":[2],\"data_offsets\":[0,1]}",
        "[[[[[[[[[[[[]]]]]]]]]]]]",
    };
    char text[512];
    for (size_t i = 0; i < sizeof descriptions / sizeof descriptions[0]; i++) {
        snprintf(text, sizeof text, "{\"t\":%s}", descriptions[i]);
        expect_failure(text, 1, DW_ERROR_CORRUPT, "FILE");
    }
    expect_failure("{\"t\":{\"dtype\":\"F5\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, DW_ERROR_UNSUPPORTED, "F5");
    expect_failure("{\"t\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, DW_ERROR_UNSUPPORTED, "f32");
    expect_failure("{\"__metadata__\":[]}", 0, DW_ERROR_CORRUPT, "FILE");
    expect_failure("{\"__metadata__\":{\"k\":1}}", 0, DW_ERROR_CORRUPT, "not a string");
    expect_failure("{\"__metadata__\":{\"k\":{\"a\":\"b\"}}}", 0, DW_ERROR_CORRUPT, "not a string");
}

static void overlaps_and_holes(void **state) {
    (void)state;
    const char *format = "{\"a\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]},"
                         "\"b\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]}}";
    /* Two ranges in 4 bytes: exactly those that follow each other and cover all are right. */
    char text[256];
    for (int a0 = 0; a0 <= 4; a0++)
        for (int a1 = a0; a1 <= 4; a1++)
            for (int b0 = 0; b0 <= 4; b0++)
                for (int b1 = b0; b1 <= 4; b1++) {
                    snprintf(text, sizeof text, format, a1 - a0, a0, a1, b1 - b0, b0, b1);
                    dw_header header;
                    dw_status status = parse(text, 4, &header);
                    bool right = (a0 == 0 && a1 == b0 && b1 == 4) || (b0 == 0 && b1 == a0 && a1 == 4);
                    if ((status == DW_OK) != right) fail_msg("%s: %s", text, dw_status_name(status));
                    if (status == DW_OK) dw_header_clear(&header);
                }
}

static void deep_nesting(void **state) {
    (void)state;
    enum { DEPTH = 1000000 };
    static const char openings[] = "[{\"";
    for (const char *opening = openings; *opening; opening++) {
        char *text = malloc(DEPTH + 8);
        strcpy(text, "{\"a\":");
        memset(text + 5, *opening, DEPTH);
        text[DEPTH + 5] = '\0';
        expect_failure(text, 0, DW_ERROR_CORRUPT, "FILE");
        free(text);
    }
}

/* A long text of tiny values must not become a tree many times its size: it is refused by its length alone. */
static void long_descriptions(void **state) {
    (void)state;
    enum { VALUES = 1000000 };
    static const char *const heads[] = {"{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,1],\"shape\":[",
                                        "{\"__metadata__\":{\"k\":["};
    for (size_t i = 0; i < 2; i++) {
        char *text = malloc(2 * VALUES + 128);
        strcpy(text, heads[i]);
        char *at = text + strlen(text);
        for (int k = 0; k < VALUES; k++) {
            *at++ = '1';
            *at++ = ',';
        }
        strcpy(at, "1]}}");
        expect_failure(text, 1, DW_ERROR_CORRUPT, i ? "not a string" : "at most");
        free(text);
    }
}

static void frames(void **state) {
    (void)state;
    static const struct {
        uint64_t claimed, file_bytes;
        const char *part; /* NULL: right */
    } cases[] = {
        {2, 10, NULL},
        {2, 9, "too few"},
        {0, 0, "too few"},
        {0, 8, "too few"},
        {3, 10, "truncated"},
        {100000000, 10, "truncated"},
        {100000001, 1000000000, "the format allows"},
        {UINT64_MAX, 1000000000, "the format allows"},
        {UINT64_MAX - 7, UINT64_MAX, "the format allows"},
        {100000000, 100000008, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t prefix[8];
        for (int k = 0; k < 8; k++)
            prefix[k] = (uint8_t)(cases[i].claimed >> (8 * k));
        uint64_t length = 0;
        dw_status status = dw_header_frame("FILE", prefix, cases[i].file_bytes, &length);
        if (cases[i].part) {
            assert_failure(status, DW_ERROR_CORRUPT, cases[i].part);
        } else {
            ASSERT_OK(status);
            assert_int_equal(length, cases[i].claimed);
        }
    }
}

/* Every dtype: its size in whole bytes, and odd counts of the narrow ones refused. */
static void dtypes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        unsigned bits;
    } known[] = {{"BOOL", 8},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},
                 {"F8_E5M2", 8},     {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16}, {"F16", 16},
                 {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"BF16", 16},   {"I32", 32},    {"U32", 32}, {"F32", 32},
                 {"C64", 64},        {"F64", 64},        {"I64", 64},    {"U64", 64}};
    assert_int_equal(sizeof known / sizeof known[0], DW_FILE_DTYPE_COUNT);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        for (unsigned count = 0; count <= 9; count++) {
            char text[160];
            snprintf(text, sizeof text, "{\"t\":{\"dtype\":\"%s\",\"shape\":[%u],\"data_offsets\":[0,%u]}}",
                     known[i].name, count, count * known[i].bits / 8);
            dw_header header;
            dw_status status = parse(text, count * known[i].bits / 8, &header);
            assert_int_equal(status, count * known[i].bits % 8 ? DW_ERROR_CORRUPT : DW_OK);
            if (status == DW_OK) dw_header_clear(&header);
        }
    }
}

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Random headers survive being written and read. */
static void round_trips(void **state) {
    (void)state;
    uint64_t random = test_seed | 1;
    for (int round = 0; round < 50; round++) {
        dw_header made = {0}, read;
        int count = (int)(next_random(&random) % 40);
        for (int i = 0; i < count; i++) {
            char name[64];
            snprintf(name, sizeof name, "t%d \"\\/\n\x01\x7f\xc3\xa9 %" PRIu64, i, next_random(&random) % 100);
            int64_t shape[5];
            int rank = (int)(next_random(&random) % 6);
            for (int k = 0; k < rank; k++)
                shape[k] = (int64_t)(next_random(&random) % 5) * 4;
            dw_file_dtype dtype = (dw_file_dtype)(next_random(&random) % DW_FILE_DTYPE_COUNT);
            uint64_t bytes;
            if (dw_tensor_bytes(dtype, rank, shape, &bytes))
                ASSERT_OK(dw_header_add_tensor(&made, name, dtype, rank, shape));
            else
                assert_failure(dw_header_add_tensor(&made, name, dtype, rank, shape), DW_ERROR_INVALID_ARGUMENT, "t");
            if (i % 3 == 0) ASSERT_OK(dw_header_add_metadata(&made, name, name));
        }
        ASSERT_OK(dw_header_finish("made", &made));
        char *bytes;
        size_t length;
        ASSERT_OK(dw_header_format("made", &made, &bytes, &length));
        assert_int_equal(length % 8, 0);
        uint64_t text_bytes;
        ASSERT_OK(dw_header_frame("made", (const uint8_t *)bytes, length + made.data_bytes, &text_bytes));
        assert_int_equal(text_bytes + 8, length);
        ASSERT_OK(dw_header_parse("made", bytes + 8, length - 8, made.data_bytes, &read));
        assert_int_equal(read.tensor_count, made.tensor_count);
        assert_int_equal(read.metadata_count, made.metadata_count);
        for (size_t i = 0; i < made.tensor_count; i++) {
            const dw_file_tensor *a = &made.tensors[i], *b = dw_header_find(&read, a->name);
            assert_non_null(b);
            assert_int_equal(a->dtype, b->dtype);
            assert_int_equal(a->rank, b->rank);
            if (a->rank) assert_memory_equal(a->shape, b->shape, sizeof *a->shape * (size_t)a->rank);
            assert_int_equal(a->begin, b->begin);
            assert_int_equal(a->end, b->end);
        }
        for (size_t i = 0; i < made.metadata_count; i++)
            assert_string_equal(dw_header_metadata(&read, made.metadata[i].key), made.metadata[i].value);
        free(bytes);
        dw_header_clear(&made);
        dw_header_clear(&read);
    }
}

static void building_refuses(void **state) {
    (void)state;
    dw_header header = {0};
    ASSERT_OK(dw_header_add_tensor(&header, "a", DW_FILE_U8, 1, (int64_t[]){1}));
    ASSERT_OK(dw_header_add_tensor(&header, "a", DW_FILE_U8, 1, (int64_t[]){1}));
    assert_failure(dw_header_finish("made", &header), DW_ERROR_EXISTS, "two tensors are named a");
    dw_header_clear(&header);
    assert_failure(dw_header_add_tensor(&header, "a", DW_FILE_F4, 1, (int64_t[]){3}), DW_ERROR_INVALID_ARGUMENT, "a");
    assert_failure(dw_header_add_tensor(&header, "a", DW_FILE_U8, 1, (int64_t[]){-1}), DW_ERROR_INVALID_ARGUMENT, "a");
    assert_failure(dw_header_add_tensor(&header, "a", DW_FILE_F64, 2, (int64_t[]){INT64_MAX, 2}),
                   DW_ERROR_INVALID_ARGUMENT, "a");
    dw_header_clear(&header);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(correct),
        cmocka_unit_test(empty),
        cmocka_unit_test(truncated),
        cmocka_unit_test(broken_json),
        cmocka_unit_test(duplicates),
        cmocka_unit_test(wrong_members),
        cmocka_unit_test(overlaps_and_holes),
        cmocka_unit_test(deep_nesting),
        cmocka_unit_test(long_descriptions),
        cmocka_unit_test(frames),
        cmocka_unit_test(dtypes),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(building_refuses),
    };
    return cmocka_run_group_tests(tests, choose_seed, NULL);
}
