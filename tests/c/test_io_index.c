/* The index of a sharded checkpoint, and the record of what quantize did. */
#include "support.h"

#include <string.h>

#include "io/index.h"
#include "io/record.h"

static dw_status parse(const char *text, dw_index *index) {
    size_t length = strlen(text);
    char *copy = malloc(length ? length : 1);
    memcpy(copy, text, length);
    dw_status status = dw_index_parse("INDEX", copy, length, index);
    free(copy);
    return status;
}

static void expect_failure(const char *text, const char *part) {
    dw_index index;
    dw_status got = parse(text, &index);
    if (got == DW_OK) fail_msg("accepted: %.300s", text);
    assert_failure(got, DW_ERROR_CORRUPT, part);
    assert_null(index.entries);
}

static void correct(void **state) {
    (void)state;
    dw_index index;
    ASSERT_OK(
        parse("{\"metadata\":{\"total_size\":12,\"total_parameters\":3},\"weight_map\":{\"b\":\"m-2.safetensors\","
              "\"a\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}\n",
              &index));
    assert_int_equal(index.entry_count, 3);
    assert_int_equal(index.shard_count, 2);
    const dw_index_entry *b = dw_index_find(&index, "b");
    assert_non_null(b);
    assert_string_equal(index.shards[b->shard], "m-2.safetensors");
    assert_null(dw_index_find(&index, "d"));
    assert_int_equal(json_integer_value(json_object_get(index.metadata, "total_parameters")), 3);

    /* Another one with the same metadata. */
    dw_index made = {0};
    ASSERT_OK(dw_index_add(&made, "x \"y\"", "m-1.safetensors"));
    ASSERT_OK(dw_index_add(&made, "a", "m-2.safetensors"));
    ASSERT_OK(dw_index_finish("made", index.metadata, 77, &made));
    dw_text text = {0};
    dw_index_format(&made, &text);
    assert_false(text.failed);
    dw_index_clear(&index);
    ASSERT_OK(dw_index_parse("made", text.bytes, text.length, &index));
    assert_int_equal(index.entry_count, 2);
    assert_string_equal(index.shards[dw_index_find(&index, "x \"y\"")->shard], "m-1.safetensors");
    assert_int_equal(json_integer_value(json_object_get(index.metadata, "total_size")), 77);
    assert_int_equal(json_integer_value(json_object_get(index.metadata, "total_parameters")), 3);
    dw_text_free(&text);
    dw_index_clear(&index);
    dw_index_clear(&made);
}

static void without_metadata(void **state) {
    (void)state;
    dw_index index;
    ASSERT_OK(parse("{\"weight_map\":{\"a\":\"m.safetensors\"}}", &index));
    assert_int_equal(index.entry_count, 1);
    dw_index_clear(&index);
}

static void outside_the_folder(void **state) {
    (void)state;
    static const char *const names[] = {
        "../m.safetensors",
        "/etc/m.safetensors",
        "a/m.safetensors",
        "..",
        ".",
        "",
        ".safetensors",
        ".hidden.safetensors",
        "m.bin",
        "m",
        "m.safetensors/",
        "a\\u002fm.safetensors",
        "\\u002e\\u002e/m.safetensors",
        "m.safetensors\\u0000.bin",
    };
    char text[256];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
        expect_failure(text, "INDEX");
    }
}

static void wrong(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "[]",
        "{}",
        "{\"metadata\":{}}",
        "{\"weight_map\":{}}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":1}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{\"a\":null}}",
        "{\"weight_map\":{\"a\":[\"m.safetensors\"]}}",
        "{\"weight_map\":{\"a\":\"m.safetensors\"}",
        "{\"weight_map\":{\"a\":\"m.safetensors\",\"a\":\"n.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"m.safetensors\"},\"weight_map\":{\"a\":\"m.safetensors\"}}",
        "{\"metadata\":{},\"metadata\":{},\"weight_map\":{\"a\":\"m.safetensors\"}}",
        "{\"metadata\":[],\"weight_map\":{\"a\":\"m.safetensors\"}}",
        "{\"metadata\":{\"k\":1,\"k\":2},\"weight_map\":{\"a\":\"m.safetensors\"}}",
        "{\"other\":{},\"weight_map\":{\"a\":\"m.safetensors\"}}",
        "{\"weight_map\":{\"\xff\":\"m.safetensors\"}}",
        "{\"metadata\":[[[[[[[[[[[[]]]]]]]]]]]],\"weight_map\":{\"a\":\"m.safetensors\"}}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        expect_failure(texts[i], "INDEX");
    dw_index index = {0};
    ASSERT_OK(dw_index_add(&index, "a", "m.safetensors"));
    ASSERT_OK(dw_index_add(&index, "a", "n.safetensors"));
    assert_failure(dw_index_finish("made", NULL, 0, &index), DW_ERROR_EXISTS, "twice");
    dw_index_clear(&index);
}

/* ---- the record ---- */

static void add_pair(dw_header *header, const char *name, int64_t rows, int64_t cols, int64_t scale_rows,
                     int64_t scale_cols) {
    char scale[64];
    snprintf(scale, sizeof scale, "%s_scale", name);
    ASSERT_OK(dw_header_add_tensor(header, name, DW_FILE_F8_E4M3, 2, (int64_t[]){rows, cols}));
    ASSERT_OK(dw_header_add_tensor(header, scale, DW_FILE_F8_E8M0, 2, (int64_t[]){scale_rows, scale_cols}));
}

static void record_round_trip(void **state) {
    (void)state;
    dw_header header = {0};
    add_pair(&header, "w", 300, 200, 3, 2);
    add_pair(&header, "a \"b\"", 0, 5, 0, 1);
    dw_record made = {.spec = {.element = DW_E4M3, .block = DW_BLOCK_128X128, .rounding = DW_ROUND_FLOOR}}, read;
    ASSERT_OK(dw_record_add(&made, "w", DW_FILE_BF16));
    ASSERT_OK(dw_record_add(&made, "a \"b\"", DW_FILE_F32));
    ASSERT_OK(dw_record_write(&made, &header));
    ASSERT_OK(dw_header_finish("made", &header));
    assert_true(dw_record_present(&header));
    for (size_t i = 0; i < header.metadata_count; i++)
        assert_true(dw_record_owns_key(header.metadata[i].key));
    ASSERT_OK(dw_record_read("made", &header, &read));
    assert_int_equal(read.count, 2);
    assert_int_equal(read.spec.block, DW_BLOCK_128X128);
    assert_int_equal(read.spec.rounding, DW_ROUND_FLOOR);
    assert_int_equal(dw_record_find(&read, "w")->source, DW_FILE_BF16);
    assert_int_equal(dw_record_find(&read, "a \"b\"")->source, DW_FILE_F32);
    assert_null(dw_record_find(&read, "w_scale"));
    dw_record_clear(&made);
    dw_record_clear(&read);
    dw_header_clear(&header);
}

static void expect_record(const char *block, const char *dtypes, dw_status status, const char *part) {
    dw_header header = {0};
    add_pair(&header, "w", 3, 40, 3, 2);
    ASSERT_OK(dw_header_add_tensor(&header, "plain", DW_FILE_F32, 2, (int64_t[]){3, 40}));
    ASSERT_OK(dw_header_add_metadata(&header, "deepwell.format", "mxfp8"));
    if (block) ASSERT_OK(dw_header_add_metadata(&header, "deepwell.block", block));
    ASSERT_OK(dw_header_add_metadata(&header, "deepwell.rounding", "rceil"));
    ASSERT_OK(dw_header_add_metadata(&header, "deepwell.layout", "row"));
    if (dtypes) ASSERT_OK(dw_header_add_metadata(&header, "deepwell.source_dtypes", dtypes));
    ASSERT_OK(dw_header_finish("FILE", &header));
    dw_record record;
    assert_failure(dw_record_read("FILE", &header, &record), status, part);
    dw_header_clear(&header);
}

static void records_that_lie(void **state) {
    (void)state;
    expect_record(NULL, "{\"w\":\"F32\"}", DW_ERROR_UNSUPPORTED, "deepwell.block");
    expect_record("1x64", "{\"w\":\"F32\"}", DW_ERROR_UNSUPPORTED, "1x64");
    expect_record("1x32", NULL, DW_ERROR_CORRUPT, "source_dtypes is missing");
    expect_record("1x32", "", DW_ERROR_CORRUPT, "FILE");
    expect_record("1x32", "[]", DW_ERROR_CORRUPT, "FILE");
    expect_record("1x32", "{\"w\":\"F32\"", DW_ERROR_CORRUPT, "FILE");
    expect_record("1x32", "{\"w\":\"F64\"}", DW_ERROR_CORRUPT, "expected \"F32\"");
    expect_record("1x32", "{\"w\":3}", DW_ERROR_CORRUPT, "expected \"F32\"");
    expect_record("1x32", "{\"w\":\"F32\",\"w\":\"F32\"}", DW_ERROR_CORRUPT, "names w twice");
    expect_record("1x32", "{\"v\":\"F32\"}", DW_ERROR_CORRUPT, "tensor v");
    expect_record("1x32", "{\"plain\":\"F32\"}", DW_ERROR_CORRUPT, "tensor plain");
    expect_record("1x32", "{\"w_scale\":\"F32\"}", DW_ERROR_CORRUPT, "tensor w_scale");
    expect_record("1x128", "{\"w\":\"F32\"}", DW_ERROR_CORRUPT, "tensor w");
    dw_header header = {0};
    dw_record record;
    ASSERT_OK(dw_header_finish("FILE", &header));
    assert_failure(dw_record_read("FILE", &header, &record), DW_ERROR_NOT_FOUND, "FILE");
    dw_header_clear(&header);
}

static void inference(void **state) {
    (void)state;
    static const struct {
        int64_t rows, cols, scale_rows, scale_cols;
        int block; /* -1: no pair */
    } cases[] = {
        {300, 200, 300, 7, DW_BLOCK_1X32},
        {300, 200, 300, 2, DW_BLOCK_1X128},
        {300, 200, 3, 2, DW_BLOCK_128X128},
        {300, 200, 300, 8, -1},
        {300, 200, 2, 3, -1},
        {1, 200, 1, 2, DW_BLOCK_1X128},
        {5, 20, 5, 1, DW_BLOCK_1X32},
        {0, 64, 0, 2, DW_BLOCK_1X32},
        {64, 0, 64, 0, DW_BLOCK_1X32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dw_header header = {0};
        add_pair(&header, "w", cases[i].rows, cases[i].cols, cases[i].scale_rows, cases[i].scale_cols);
        ASSERT_OK(dw_header_finish("FILE", &header));
        dw_quantize_spec spec;
        bool found = dw_record_infer(dw_header_find(&header, "w"), dw_record_scale_of(&header, "w"), &spec);
        assert_int_equal(found ? (int)spec.block : -1, cases[i].block);
        assert_null(dw_record_scale_of(&header, "w_scale"));
        assert_false(dw_record_infer(dw_header_find(&header, "w"), NULL, &spec));
        dw_header_clear(&header);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(correct),   cmocka_unit_test(without_metadata),  cmocka_unit_test(outside_the_folder),
        cmocka_unit_test(wrong),     cmocka_unit_test(record_round_trip), cmocka_unit_test(records_that_lie),
        cmocka_unit_test(inference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
