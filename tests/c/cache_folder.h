/* What tests that touch the library's cache files share: a folder for them, the file in a folder, what is in it. */
#ifndef DW_TESTS_CACHE_FOLDER_H
#define DW_TESTS_CACHE_FOLDER_H

#include <dirent.h>
#include <stdlib.h>

#include "support.h"

/* A cache folder of the test's own, in which the library then keeps its files. */
static inline void make_cache(char cache[64]) {
    snprintf(cache, 64, "/tmp/deepwell-test-XXXXXX");
    assert_non_null(mkdtemp(cache));
    setenv("XDG_CACHE_HOME", cache, 1);
}

static inline void remove_cache(const char *cache) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %.64s", cache);
    assert_int_equal(system(command), 0);
}

/* The only file in the folder; false when there is none. */
static inline bool only_file(const char *folder, char path[512]) {
    DIR *directory = opendir(folder);
    if (!directory) return false;
    int found = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        if (entry->d_name[0] != '.') {
            snprintf(path, 512, "%.200s/%s", folder, entry->d_name);
            found++;
        }
    closedir(directory);
    assert_true(found <= 1); /* nothing temporary stays */
    return found == 1;
}

static inline size_t read_file(const char *path, char *text, size_t capacity) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t length = fread(text, 1, capacity - 1, file);
    text[length] = 0;
    fclose(file);
    return length;
}

static inline void write_file(const char *path, const char *text, size_t length) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, length, file), length);
    fclose(file);
}

#endif
