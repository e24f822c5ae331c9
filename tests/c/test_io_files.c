/* Files: outputs appear whole or not at all, and readers of files that change or lie fail cleanly. */
#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/output.h"
#include "io/reader.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/deepwell-test-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

/* Removes what a test made; its own entries are plain files and one level of folders. */
static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

static const char *in_folder(const char *name) {
    static char paths[4][512];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int count_entries(const char *path) {
    DIR *stream = opendir(path);
    assert_non_null(stream);
    int count = 0;
    while (readdir(stream))
        count++;
    closedir(stream);
    return count - 2;
}

static void put(const char *path, const void *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void assert_content(const char *path, const char *text) {
    char *bytes;
    size_t length;
    ASSERT_OK(dw_read_file(path, 1000, &bytes, &length));
    assert_string_equal(bytes, text);
    free(bytes);
}

static void commit_and_discard(void **state) {
    (void)state;
    dw_output *output;
    ASSERT_OK(dw_output_create(in_folder("a"), false, &output));
    assert_int_not_equal(access(in_folder("a"), F_OK), 0);
    ASSERT_OK(dw_output_reserve(output, 6));
    ASSERT_OK(dw_output_write(output, 3, "def", 3));
    ASSERT_OK(dw_output_write(output, 0, "abc", 3));
    ASSERT_OK(dw_output_commit(output));
    assert_content(in_folder("a"), "abcdef");
    assert_int_equal(count_entries(folder), 1);

    ASSERT_OK(dw_output_create(in_folder("b"), false, &output));
    ASSERT_OK(dw_output_write(output, 0, "abc", 3));
    dw_output_discard(output);
    assert_int_equal(count_entries(folder), 1);
    dw_output_discard(NULL);
}

static void existing_outputs(void **state) {
    (void)state;
    dw_output *output;
    put(in_folder("a"), "old", 3);
    assert_failure(dw_output_create(in_folder("a"), false, &output), DW_ERROR_EXISTS, "--force");
    ASSERT_OK(dw_output_create(in_folder("a"), true, &output));
    ASSERT_OK(dw_output_write(output, 0, "new", 3));
    assert_content(in_folder("a"), "old"); /* until the commit */
    ASSERT_OK(dw_output_commit(output));
    assert_content(in_folder("a"), "new");

    /* One that appears meanwhile is not replaced either. */
    ASSERT_OK(dw_output_create(in_folder("b"), false, &output));
    put(in_folder("b"), "other", 5);
    assert_failure(dw_output_commit(output), DW_ERROR_EXISTS, "--force");
    assert_content(in_folder("b"), "other");
    assert_int_equal(count_entries(folder), 2);

    assert_int_equal(mkdir(in_folder("d"), 0777), 0);
    assert_failure(dw_output_create(in_folder("d"), true, &output), DW_ERROR_EXISTS, "is a directory");
    assert_int_equal(mkfifo(in_folder("p"), 0600), 0);
    assert_failure(dw_output_create(in_folder("p"), true, &output), DW_ERROR_EXISTS, "not a regular file");
    assert_failure(dw_output_create("/dev/null", true, &output), DW_ERROR_EXISTS, "not a regular file");
    assert_failure(dw_output_create("", true, &output), DW_ERROR_IO, "name of a file");
    assert_failure(dw_output_create(in_folder("missing/x"), true, &output), DW_ERROR_IO, "create its folder");
    assert_failure(dw_output_create(in_folder("a/x"), true, &output), DW_ERROR_IO, "cannot write");
    char name[400];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_failure(dw_output_create(in_folder(name), true, &output), DW_ERROR_IO, "name too long");
    assert_int_equal(count_entries(folder), 4);
}

/* A limit on the size of files stands in for a full disk: both fail the write after the room is gone. */
static void full_disk(void **state) {
    (void)state;
    struct rlimit before, small = {4096, 4096};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    dw_output *output;
    char bytes[8192] = {0};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    ASSERT_OK(dw_output_create(in_folder("a"), false, &output));
    dw_status reserve = dw_output_reserve(output, 1 << 20), first = dw_output_write(output, 0, bytes, 4096);
    dw_status second = dw_output_write(output, 4096, bytes, sizeof bytes);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_failure(second, DW_ERROR_IO, "free some space");
    assert_int_equal(reserve, DW_ERROR_IO);
    assert_int_equal(first, DW_OK);
    dw_output_discard(output);
    assert_int_equal(count_entries(folder), 0);
}

static void copies(void **state) {
    (void)state;
    char bytes[10000], buffer[777], read[10000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7 + i / 256);
    put(in_folder("source"), bytes, sizeof bytes);
    int source = open(in_folder("source"), O_RDONLY);
    dw_output *output;
    ASSERT_OK(dw_output_create(in_folder("a"), false, &output));
    ASSERT_OK(dw_output_copy(output, 5, source, 100, 9000, buffer, sizeof buffer));
    ASSERT_OK(dw_output_commit(output));
    int made = open(in_folder("a"), O_RDONLY);
    assert_int_equal(pread(made, read, sizeof read, 5), 9000);
    assert_memory_equal(read, bytes + 100, 9000);
    close(made);

    /* The source ends early. */
    ASSERT_OK(dw_output_create(in_folder("b"), false, &output));
    assert_failure(dw_output_copy(output, 0, source, 5000, 9000, buffer, sizeof buffer), DW_ERROR_CORRUPT, "shorter");
    dw_output_discard(output);
    close(source);
    /* A device cannot be copied inside the kernel. */
    source = open("/dev/zero", O_RDONLY);
    ASSERT_OK(dw_output_create(in_folder("c"), false, &output));
    ASSERT_OK(dw_output_copy(output, 0, source, 0, 5000, buffer, sizeof buffer));
    ASSERT_OK(dw_output_commit(output));
    close(source);
    struct stat facts;
    assert_int_equal(stat(in_folder("c"), &facts), 0);
    assert_int_equal(facts.st_size, 5000);
}

static void put_in(dw_output_directory *directory, const char *name, const char *text) {
    dw_output *output;
    ASSERT_OK(dw_output_directory_file(directory, name, &output));
    ASSERT_OK(dw_output_write(output, 0, text, strlen(text)));
    ASSERT_OK(dw_output_commit(output));
}

static void directories(void **state) {
    (void)state;
    dw_output_directory *directory;
    ASSERT_OK(dw_output_directory_create(in_folder("d/"), false, &directory));
    put_in(directory, "x", "1");
    put_in(directory, "index", "2");
    assert_int_not_equal(access(in_folder("d"), F_OK), 0);
    ASSERT_OK(dw_output_directory_commit(directory, "index"));
    assert_content(in_folder("d/x"), "1");
    assert_content(in_folder("d/index"), "2");
    assert_int_equal(count_entries(folder), 1);

    assert_failure(dw_output_directory_create(in_folder("d"), false, &directory), DW_ERROR_EXISTS, "not empty");
    put(in_folder("d/other"), "3", 1);
    ASSERT_OK(dw_output_directory_create(in_folder("d"), true, &directory));
    put_in(directory, "x", "4");
    assert_content(in_folder("d/x"), "1");
    ASSERT_OK(dw_output_directory_commit(directory, NULL));
    assert_content(in_folder("d/x"), "4");
    assert_content(in_folder("d/other"), "3");
    assert_int_equal(count_entries(in_folder("d")), 3);

    ASSERT_OK(dw_output_directory_create(in_folder("d"), true, &directory));
    put_in(directory, "x", "5");
    dw_output_directory_discard(directory);
    assert_content(in_folder("d/x"), "4");
    assert_int_equal(count_entries(in_folder("d")), 3);

    assert_int_equal(mkdir(in_folder("e"), 0777), 0);
    ASSERT_OK(dw_output_directory_create(in_folder("e"), false, &directory));
    put_in(directory, "x", "6");
    ASSERT_OK(dw_output_directory_commit(directory, NULL));
    assert_content(in_folder("e/x"), "6");

    ASSERT_OK(dw_output_directory_create(in_folder("f"), false, &directory));
    assert_int_equal(mkdir(in_folder("f"), 0777), 0);
    put(in_folder("f/x"), "7", 1);
    put_in(directory, "x", "8");
    assert_failure(dw_output_directory_commit(directory, NULL), DW_ERROR_EXISTS, "created meanwhile");
    assert_content(in_folder("f/x"), "7");
    put(in_folder("file"), "", 0);
    assert_failure(dw_output_directory_create(in_folder("file"), true, &directory), DW_ERROR_EXISTS, "not a directory");
    assert_failure(dw_output_directory_create(in_folder("no/no"), true, &directory), DW_ERROR_IO, "create its folder");
    assert_failure(dw_output_directory_create("", true, &directory), DW_ERROR_IO, "name of a directory");
    assert_int_equal(count_entries(folder), 4);
}

static void readers(void **state) {
    (void)state;
    dw_reader *reader;
    static const char file[] =
        "\x3b\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}      wxyz";
    assert_int_equal(sizeof file - 1, 8 + 0x3b + 4);
    put(in_folder("good"), file, sizeof file - 1);
    ASSERT_OK(dw_reader_open(in_folder("good"), &reader));
    char bytes[4];
    ASSERT_OK(dw_reader_read(reader, 1, bytes, 3));
    assert_memory_equal(bytes, "xyz", 3);
    /* The file shrinks while it is open. */
    assert_int_equal(truncate(in_folder("good"), 8 + 0x3b + 2), 0);
    assert_failure(dw_reader_read(reader, 0, bytes, 4), DW_ERROR_CORRUPT, "shorter");
    dw_reader_close(reader);
    dw_reader_close(NULL);

    /* Every shorter file, and one that is longer. */
    for (size_t size = 0; size < sizeof file - 1; size++) {
        put(in_folder("cut"), file, size);
        assert_failure(dw_reader_open(in_folder("cut"), &reader), DW_ERROR_CORRUPT, "cut");
    }
    put(in_folder("long"), file, sizeof file);
    assert_failure(dw_reader_open(in_folder("long"), &reader), DW_ERROR_CORRUPT, "belong to none");

    assert_failure(dw_reader_open(in_folder("missing"), &reader), DW_ERROR_NOT_FOUND, "missing");
    assert_failure(dw_reader_open(in_folder("good/x"), &reader), DW_ERROR_NOT_FOUND, "good/x");
    assert_failure(dw_reader_open(folder, &reader), DW_ERROR_IO, "directory");
    assert_failure(dw_reader_open("/dev/null", &reader), DW_ERROR_IO, "not a regular file");
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    assert_failure(dw_reader_open(in_folder("pipe"), &reader), DW_ERROR_IO, "not a regular file");

    size_t length;
    char *text;
    assert_failure(dw_read_file(in_folder("long"), 3, &text, &length), DW_ERROR_CORRUPT, "at most 3");
    assert_failure(dw_read_file(in_folder("missing"), 3, &text, &length), DW_ERROR_NOT_FOUND, "missing");
}

/* A header length that the file does not have costs no memory: the file is sparse and the process may not grow. */
static void lies_cost_nothing(void **state) {
    (void)state;
    static const uint8_t claims[][8] = {
        {0xFF, 0xE0, 0xF5, 5}, {0, 0xE1, 0xF5, 5}, {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F}};
    dw_reader *reader;
    for (size_t i = 0; i < sizeof claims / sizeof claims[0]; i++) {
        put(in_folder("lie"), claims[i], 8);
        assert_int_equal(truncate(in_folder("lie"), 4096), 0);
        struct rusage before, after;
        getrusage(RUSAGE_SELF, &before);
        assert_failure(dw_reader_open(in_folder("lie"), &reader), DW_ERROR_CORRUPT, "claims a header");
        getrusage(RUSAGE_SELF, &after);
        assert_true(after.ru_maxrss - before.ru_maxrss < 1024);
    }
}

static void paths(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"a", ".", "a"}, {"/a", "/", "a"}, {"b/a", "b", "a"}, {"/c/b/a", "/c/b", "a"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *part = dw_path_folder(cases[i][0]);
        assert_string_equal(part, cases[i][1]);
        free(part);
        assert_string_equal(dw_path_name(cases[i][0]), cases[i][2]);
    }
    static const char *const joins[][3] = {{"", "a", "a"}, {"b", "a", "b/a"}, {"b/", "a", "b/a"}, {"/", "a", "/a"}};
    for (size_t i = 0; i < sizeof joins / sizeof joins[0]; i++) {
        char *path = dw_path_join(joins[i][0], joins[i][1]);
        assert_string_equal(path, joins[i][2]);
        free(path);
    }
}

#define IN_A_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(commit_and_discard), IN_A_FOLDER(existing_outputs),
        IN_A_FOLDER(full_disk),          IN_A_FOLDER(copies),
        IN_A_FOLDER(directories),        IN_A_FOLDER(readers),
        IN_A_FOLDER(lies_cost_nothing),  cmocka_unit_test(paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
