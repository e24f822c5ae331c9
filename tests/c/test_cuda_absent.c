/* Machines without a usable driver: the status, and text that says what is wrong and what to do. Each case is its own
 * process, because the driver is looked for once per process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "deepwell/deepwell.h"

typedef struct answer {
    dw_status version, count, info, gemm, lt;
    int devices;
    char text[512];
} answer;

static void ask(answer *a) {
    int version = 0;
    dw_cuda_device_info info;
    dw_context *context = NULL;
    a->devices = -1;
    a->version = dw_cuda_driver_version(&version);
    a->count = dw_cuda_device_count(&a->devices);
    a->info = dw_cuda_device_get(0, &info);
    a->lt = dw_cublaslt_version(NULL, NULL);
    dw_context_create(NULL, &context);
    dw_gemm_args args = {0};
    static _Alignas(256) uint16_t data[64];
    dw_tensor t = dw_matrix(data, DW_BF16, 8, 8);
    t.device_type = DW_DEVICE_CUDA;
    args.a.data = args.b.data = args.d = t;
    a->gemm = dw_gemm(context, &args, NULL);
    snprintf(a->text, sizeof a->text, "%s", dw_last_error());
    dw_context_destroy(context);
}

static answer ask_with(const char *libcuda, const char *variable, const char *value) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("DEEPWELL_LIBCUDA", libcuda, 1);
        if (variable) setenv(variable, value, 1);
        answer a;
        memset(&a, 0, sizeof a);
        ask(&a);
        _exit(write(ends[1], &a, sizeof a) == sizeof a ? 0 : 1);
    }
    close(ends[1]);
    answer a;
    memset(&a, 0, sizeof a);
    assert_int_equal(read(ends[0], &a, sizeof a), sizeof a);
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return a;
}

static void all_are(const answer *a, dw_status expected) {
    assert_int_equal(a->version, expected);
    assert_int_equal(a->count, expected);
    assert_int_equal(a->info, expected);
    assert_int_equal(a->lt, expected);
    assert_int_equal(a->gemm, expected);
    assert_int_equal(a->devices, -1); /* outputs are written on success only */
}

static void contains(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("\"%s\" does not say \"%s\"", text, part);
}

static void no_driver(void **state) {
    (void)state;
    answer a = ask_with("/nowhere/libcuda.so.1", NULL, NULL);
    all_are(&a, DW_ERROR_UNSUPPORTED);
    contains(a.text, "no CUDA driver");
    contains(a.text, "/nowhere/libcuda.so.1");
    contains(a.text, "CPU");
}

static void driver_before_cuda_12(void **state) {
    (void)state;
    answer a = ask_with(FAKE_LIBCUBLASLT, NULL, NULL); /* a library that is no driver at all */
    all_are(&a, DW_ERROR_UNSUPPORTED);
    contains(a.text, "older than CUDA 12.0");
    a = ask_with(FAKE_LIBCUDA, "FAKE_CUDA_LACKS", "cuTensorMapEncodeTiled");
    all_are(&a, DW_ERROR_UNSUPPORTED);
    contains(a.text, "lacks cuTensorMapEncodeTiled");
    contains(a.text, "update");
}

static void driver_that_does_not_start(void **state) {
    (void)state;
    answer a = ask_with(FAKE_LIBCUDA, "FAKE_CUDA_INIT", "803");
    all_are(&a, DW_ERROR_DEVICE);
    contains(a.text, "cuInit");
    contains(a.text, "CUDA_ERROR_FAKE");
    contains(a.text, "the fake driver was told to fail");
}

static void driver_without_gpus(void **state) {
    (void)state;
    answer a = ask_with(FAKE_LIBCUDA, "FAKE_CUDA_INIT", "100");
    assert_int_equal(a.version, DW_OK);
    assert_int_equal(a.count, DW_OK);
    assert_int_equal(a.devices, 0);
    assert_int_equal(a.info, DW_ERROR_INVALID_ARGUMENT);
    assert_int_not_equal(a.gemm, DW_OK);
}

static void no_cublaslt(void **state) {
    (void)state;
    answer a = ask_with(FAKE_LIBCUDA, "DEEPWELL_LIBCUBLASLT", "/nowhere/libcublasLt.so");
    assert_int_equal(a.count, DW_OK);
    assert_int_equal(a.lt, DW_ERROR_UNSUPPORTED);
    assert_int_equal(a.gemm, DW_ERROR_UNSUPPORTED);
    contains(a.text, "no cuBLASLt");
    contains(a.text, "/nowhere/libcublasLt.so");
    a = ask_with(FAKE_LIBCUDA, "DEEPWELL_LIBCUBLASLT", FAKE_LIBCUDA); /* a library that is no cuBLASLt */
    assert_int_equal(a.gemm, DW_ERROR_UNSUPPORTED);
    contains(a.text, "lacks cublasLt");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_driver),
        cmocka_unit_test(driver_before_cuda_12),
        cmocka_unit_test(driver_that_does_not_start),
        cmocka_unit_test(driver_without_gpus),
        cmocka_unit_test(no_cublaslt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
