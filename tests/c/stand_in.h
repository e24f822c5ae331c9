/* The stand-in driver, which the library opens in place of the system's. */
#ifndef DW_TESTS_STAND_IN_H
#define DW_TESTS_STAND_IN_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

/* To be called first; ends the test when there is no stand-in. */
static inline void *open_stand_in(void) {
    setenv("DEEPWELL_LIBCUDA", FAKE_LIBCUDA, 1);
    void *library = dlopen(FAKE_LIBCUDA, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return library;
}

#endif
