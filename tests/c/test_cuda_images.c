/* The device code in the library: every image is a whole fatbin and holds machine code for the architectures its entry
 * in the table names, as NVIDIA's own cuobjdump sees it where the build found one; and kernels that may start before
 * the one ahead of them ends wait for it first. */
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
    assert_int_equal(write(handle, image->begin, size), size);
    snprintf(command, sizeof command, "'%s' %s '%s' 2>&1", DEEPWELL_CUOBJDUMP, option, file);
    FILE *listing = popen(command, "r");
    assert_non_null(listing);
    while (fgets(line, sizeof line, listing))
        take(line, to);
    assert_int_equal(pclose(listing), 0);
    close(handle);
    unlink(file);
}

static void note_architecture(char *line, void *to) {
    bool *seen = to;
    seen[0] |= strstr(line, ".sm_90a.") != NULL;
    seen[1] |= strstr(line, ".sm_100") != NULL; /* the family's code is listed under its first member */
}

/* Where a listing of machine code has got to. */
typedef struct reading {
    const char *const *too_early; /* instructions, up to a NULL */
    char kernel[256];
    bool waited;
    int kernels;
} reading;

static void must_have_waited(const reading *r) {
    if (r->kernels > 0 && !r->waited) fail_msg("%s does not wait for the kernel ahead of it", r->kernel);
}

static void read_instruction(char *line, void *to) {
    reading *r = to;
    const char *name = strstr(line, "Function : ");
    if (name) {
        must_have_waited(r);
        *r = (reading){.too_early = r->too_early, .kernels = r->kernels + 1};
        snprintf(r->kernel, sizeof r->kernel, "%.*s", (int)strcspn(name + 11, "\n"), name + 11);
    }
    r->waited |= strstr(line, " ACQBULK") != NULL; /* griddepcontrol.wait */
    if (strstr(line, " PREEXIT") && !r->waited)    /* griddepcontrol.launch_dependents */
        fail_msg("%s lets the next kernel start before it has waited: %s", r->kernel, line);
    for (size_t i = 0; r->too_early[i] && !r->waited; i++)
        if (strstr(line, r->too_early[i]))
            fail_msg("%s does not wait for the kernel ahead of it first: %s", r->kernel, line);
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

/* The host launches them all programmatically. Hopper's code; Blackwell's comes from the same source. Matrix kernels
 * set up barriers and fetch tensor maps first; a load of theirs ahead of the wait, which the compiler may make of one
 * that it takes for a constant's, would read what another kernel still writes. */
static void kernels_wait_before_anything_else(void **state) {
    (void)state;
    needs_cuobjdump();
#ifdef DEEPWELL_CUOBJDUMP
    static const char *const common[] = {" EXIT", " BRA",  " CALL",  " LD.",  " LDG",  " ST.",   " STG",
                                         " ATOM", " RED.", " REDG.", " UBLK", " UTMA", " SYNCS", NULL};
    static const char *const matrix[] = {" EXIT", " LD.",   " LDG",   " ST.",     " STG",     " ATOM", " RED.",
                                         " REDG", " UBLKC", " UBLKR", " UTMALDG", " UTMASTG", NULL};
    for (size_t i = 0; i < dw_cuda_image_count(); i++) {
        if (!strstr(dw_cuda_images[i].architectures, "sm_90a")) continue;
        const bool is_common = strncmp(dw_cuda_images[i].name, "common/", 7) == 0;
        reading r = {.too_early = is_common ? common : matrix};
        list(&dw_cuda_images[i], "-sass -arch sm_90a", read_instruction, &r);
        must_have_waited(&r);
        assert_true(r.kernels > 0);
    }
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(table_is_sound), cmocka_unit_test(machine_code_is_there),
                                       cmocka_unit_test(kernels_wait_before_anything_else)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
