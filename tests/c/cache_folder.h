/* What tests of cache files share: the file in a folder, and what is in it. */
#ifndef DW_TESTS_CACHE_FOLDER_H
#define DW_TESTS_CACHE_FOLDER_H

#include <dirent.h>

#include "support.h"

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
