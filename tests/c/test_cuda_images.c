/* The device code in the library: every image is a whole fatbin and holds machine code for the architectures its entry
 * in the table names, as NVIDIA's own cuobjdump sees it where the build found one. (What the code does is looked at in
 * tests/python/test_machine_code.py.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cuda/host/images.h"
#include "deepwell/deepwell.h"

static void needs_images(void) {
    if (dw_cuda_image_count() == 0) {
        print_message("built without device code\n");
        skip();
    }
}

static void table_is_sound(void **state) {
    (void)state;
    needs_images();
    for (size_t i = 0; i < dw_cuda_image_count(); i++) {
        const char *name, *architectures;
        const void *bytes;
        size_t size;
        assert_int_equal(dw_cuda_image_get(i, &name, &architectures, &bytes, &size), DW_OK);
        assert_ptr_equal(dw_cuda_image_find(name)->begin, bytes);
        /* A fatbin: magic, version, header bytes, then bytes that follow. */
        struct {
            uint32_t magic;
            uint16_t version, header;
            uint64_t body;
        } head;
        assert_true(size > sizeof head);
        memcpy(&head, bytes, sizeof head);
        assert_int_equal(head.magic, 0xBA55ED50);
        assert_int_equal(head.header + head.body, size);
        assert_int_equal((uintptr_t)bytes % 64, 0);
        bool hopper = strncmp(name, "sm100/", 6) != 0, blackwell = strncmp(name, "sm90/", 5) != 0;
        assert_int_equal(strstr(architectures, "sm_90a") != NULL, hopper);
        assert_int_equal(strstr(architectures, "sm_100f") != NULL, blackwell);
    }
    assert_null(dw_cuda_image_find("common"));
    assert_int_equal(dw_cuda_image_get(dw_cuda_image_count(), NULL, NULL, NULL, NULL), DW_ERROR_INVALID_ARGUMENT);
    assert_int_equal(dw_cuda_image_get(0, NULL, NULL, NULL, NULL), DW_OK);
}

#ifdef DEEPWELL_CUOBJDUMP
/* Hands every line that cuobjdump says of an image to `take`. */
static void list(const dw_cuda_image *image, const char *option, void (*take)(char *line, void *to), void *to) {
    char file[] = "/tmp/deepwell-image-XXXXXX", command[4096], line[1024];
    const int handle = mkstemp(file);
    assert_true(handle >= 0);
    const size_t size = (size_t)(image->end - image->begin);
    const ssize_t written = write(handle, image->begin, size);
    snprintf(command, sizeof command, "'%s' %s '%s' 2>&1", DEEPWELL_CUOBJDUMP, option, file);
    FILE *listing = popen(command, "r");
    while (listing && fgets(line, sizeof line, listing))
        take(line, to);
    const int status = listing ? pclose(listing) : -1;
    close(handle);
    unlink(file); /* before anything is asserted, so that it does not stay */
    assert_int_equal(written, size);
    assert_int_equal(status, 0);
}

static void note_architecture(char *line, void *to) {
    bool *seen = to;
    seen[0] |= strstr(line, ".sm_90a.") != NULL;
    seen[1] |= strstr(line, ".sm_100") != NULL; /* the family's code is listed under its first member */
}
#endif

static void needs_cuobjdump(void) {
    needs_images();
#ifndef DEEPWELL_CUOBJDUMP
    print_message("no cuobjdump on this machine\n");
    skip();
#endif
}

static void machine_code_is_there(void **state) {
    (void)state;
    needs_cuobjdump();
#ifdef DEEPWELL_CUOBJDUMP
    for (size_t i = 0; i < dw_cuda_image_count(); i++) {
        const dw_cuda_image *image = &dw_cuda_images[i];
        bool seen[2] = {false, false};
        list(image, "-lelf", note_architecture, seen);
        if (seen[0] != (strstr(image->architectures, "sm_90a") != NULL) ||
            seen[1] != (strstr(image->architectures, "sm_100f") != NULL))
            fail_msg("%s is said to hold %s", image->name, image->architectures);
    }
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(table_is_sound), cmocka_unit_test(machine_code_is_there)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
