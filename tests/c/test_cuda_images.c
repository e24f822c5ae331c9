/* The device code in the library: every image is a whole fatbin and holds machine code for the architectures its entry
 * in the table names, as NVIDIA's own cuobjdump sees it where the build found one. */
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

static void machine_code_is_there(void **state) {
    (void)state;
    needs_images();
#ifdef DEEPWELL_CUOBJDUMP
    char file[] = "/tmp/deepwell-image-XXXXXX", command[4096], line[1024];
    int handle = mkstemp(file);
    assert_true(handle >= 0);
    for (size_t i = 0; i < dw_cuda_image_count(); i++) {
        const dw_cuda_image *image = &dw_cuda_images[i];
        size_t size = (size_t)(image->end - image->begin);
        assert_int_equal(ftruncate(handle, 0), 0);
        assert_int_equal(pwrite(handle, image->begin, size, 0), size);
        snprintf(command, sizeof command, "'%s' -lelf '%s' 2>&1", DEEPWELL_CUOBJDUMP, file);
        FILE *listing = popen(command, "r");
        assert_non_null(listing);
        bool hopper = false, blackwell = false;
        while (fgets(line, sizeof line, listing)) {
            hopper |= strstr(line, ".sm_90a.") != NULL;
            blackwell |= strstr(line, ".sm_100") != NULL; /* the family's code is listed under its first member */
        }
        assert_int_equal(pclose(listing), 0);
        if (hopper != (strstr(image->architectures, "sm_90a") != NULL) ||
            blackwell != (strstr(image->architectures, "sm_100f") != NULL))
            fail_msg("%s is said to hold %s", image->name, image->architectures);
    }
    close(handle);
    unlink(file);
#else
    print_message("no cuobjdump on this machine\n");
    skip();
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(table_is_sound), cmocka_unit_test(machine_code_is_there)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
