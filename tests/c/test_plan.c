/* Planning: what is decided and why, on descriptions alone. */
#include "support.h"

#include <math.h>
#include <string.h>

enum { LAYERS_MAX = 24 };

/* A model under construction. */
typedef struct described {
    dw_layer layers[LAYERS_MAX];
    const char *names[LAYERS_MAX];
    dw_model model;
} described;

static dw_layer linear(const char *name, int64_t in, int64_t out) {
    return (dw_layer){.name = name,
                      .type = "nn.Linear",
                      .in_features = in,
                      .out_features = out,
                      .parameters = in * out,
                      .dtype = "bfloat16",
                      .shares_input = -1,
                      .input_from = -1};
}

static size_t add(described *d, dw_layer layer) {
    size_t index = d->model.layer_count++;
    d->layers[index] = layer;
    d->names[index] = layer.name;
    d->model.name = "Described";
    d->model.layers = d->layers;
    d->model.names = d->names;
    d->model.name_count = d->model.layer_count;
    d->model.parameters += layer.parameters;
    return index;
}

static dw_plan *make(const described *d, dw_plan_options options) {
    static dw_plan_options kept; /* a plan looks at its options again */
    kept = options;
    dw_plan *plan = NULL;
    ASSERT_OK(dw_plan_create(&d->model, &kept, &plan));
    return plan;
}

static const dw_decision *only_decision(const dw_layer *layer, dw_plan_options options, dw_plan **plan) {
    static described d;
    d = (described){0};
    add(&d, *layer);
    *plan = make(&d, options);
    return dw_plan_decision(*plan, 0);
}

/* The reason for one layer starts so. */
static void assert_reason(dw_layer layer, dw_plan_options options, dw_action action, const char *reason) {
    dw_plan *plan;
    const dw_decision *decision = only_decision(&layer, options, &plan);
    if (decision->action != action || strncmp(decision->reason, reason, strlen(reason)) != 0)
        fail_msg("got %s, \"%s\"; expected %s, \"%s\"", dw_action_name(decision->action), decision->reason,
                 dw_action_name(action), reason);
    dw_plan_destroy(plan);
}

static const dw_plan_options cpu = {0};
static const dw_plan_options hopper = {.device = "hopper"};
static const dw_plan_options blackwell = {.device = "blackwell"};

/* ---- reasons ---- */

static void each_reason(void **state) {
    (void)state;
    dw_layer layer = linear("a", 4096, 4096);
    assert_reason(layer, cpu, DW_ACTION_CONVERT, "emulated exactly");
    assert_reason(layer, (dw_plan_options){.target = "blackwell"}, DW_ACTION_CONVERT, "emulates blackwell exactly");
    const dw_plan_options as_hopper = {.target = "hopper"};
    assert_reason(layer, as_hopper, DW_ACTION_CONVERT, "emulates hopper, but for the weight gradient's blocks");
    assert_reason(layer, (dw_plan_options){.target = "hopper", .inference = true}, DW_ACTION_CONVERT,
                  "emulates hopper exactly");
    assert_reason(layer, (dw_plan_options){.target = "hopper", .block_size = 32}, DW_ACTION_CONVERT,
                  "emulates hopper exactly");
    layer.frozen = true;
    assert_reason(layer, as_hopper, DW_ACTION_CONVERT, "emulates hopper exactly");
    layer.frozen = false;
    assert_reason(layer, hopper, DW_ACTION_CONVERT, "FP8 products on this GPU");
    assert_reason(layer, (dw_plan_options){.precision = "bf16"}, DW_ACTION_KEEP, "precision bf16 quantizes nothing");
    assert_reason(layer, (dw_plan_options){.strategy = "bf16_fused"}, DW_ACTION_KEEP, "precision bf16");
    assert_reason(linear("a", 31, 64), cpu, DW_ACTION_KEEP,
                  "too small: a dimension of 31 is less than one block of 32");
    assert_reason(linear("a", 4104, 4096), hopper, DW_ACTION_KEEP,
                  "in_features 4104 is not a multiple of 16, which FP8 products on Hopper need");
    assert_reason(linear("a", 8192, 8208), blackwell, DW_ACTION_KEEP,
                  "out_features 8208 is not a multiple of 32, which FP8 products on Blackwell need");
    assert_reason(linear("a", 4096, 1024), hopper, DW_ACTION_KEEP, "predicted to lose: ");
    assert_reason(linear("a", 4096, 1024), (dw_plan_options){.device = "hopper", .tokens = 65536, .sequence = 4096},
                  DW_ACTION_CONVERT, "FP8 products on this GPU");
    assert_reason(linear("a", 2048, 2048), (dw_plan_options){.device = "hopper", .tokens = 2048, .sequence = 2048},
                  DW_ACTION_KEEP,
                  "may lose: FP8 was measured to win on Hopper from 4096 in one dimension and 4,194,304 weights; "
                  "predicted ");
    layer.dtype = "float64";
    assert_reason(layer, cpu, DW_ACTION_KEEP, "its weight is float64; float32, float16 and bfloat16 are converted");
    layer = linear("a", 64, 64);
    layer.obstacle = "its forward was replaced on the instance";
    assert_reason(layer, cpu, DW_ACTION_KEEP, "its forward was replaced on the instance");
    layer = linear("a", 8192, 8192);
    layer.transposed = true;
    assert_reason(layer, hopper, DW_ACTION_KEEP, "its weight is stored [in_features, out_features]");
    assert_reason(layer, cpu, DW_ACTION_CONVERT, "emulated exactly");
    layer.note = "its weight is stored so and so";
    assert_reason(layer, cpu, DW_ACTION_CONVERT, "emulated exactly; its weight is stored so and so");
}

static void each_kind(void **state) {
    (void)state;
    dw_layer layer = linear("a", 4096, 32000);
    layer.kind_reason = "named a";
    static const struct {
        dw_layer_kind kind;
        const char *reason;
    } kept[] = {{DW_LAYER_OUTPUT_HEAD, "output head (named a): stays in high precision"},
                {DW_LAYER_ROUTER, "router (named a): stays in high precision"},
                {DW_LAYER_ADAPTER, "low-rank adapter (named a): stays in high precision"},
                {DW_LAYER_EMBEDDING, "embedding"},
                {DW_LAYER_NORM, "norm"},
                {DW_LAYER_ATTENTION, "attention"},
                {DW_LAYER_OTHER, "named a"}};
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        layer.kind = kept[i].kind;
        assert_reason(layer, cpu, DW_ACTION_KEEP, kept[i].reason);
    }
    layer.kind = DW_LAYER_EXPERTS;
    layer.matrices = 8;
    assert_reason(layer, cpu, DW_ACTION_CONVERT, "emulated exactly");
    assert_reason(layer, hopper, DW_ACTION_KEEP,
                  "experts: this version's grouped FP8 products are in the C library only");
    assert_reason(layer, (dw_plan_options){.device = "hopper", .strategy = "mxfp8_moe", .tokens = 65536},
                  DW_ACTION_CONVERT, "FP8");
    assert_reason(layer, (dw_plan_options){.strategy = "mxfp8_dense"}, DW_ACTION_KEEP, "the strategy mxfp8_dense");
    layer.kernel = "mine";
    layer.kind = DW_LAYER_OTHER;
    assert_reason(layer, cpu, DW_ACTION_CONVERT, "runs the registered kernel mine");
    layer.kernel = NULL;
    layer.kind = DW_LAYER_NORM;
    layer.fused = "one pass";
    assert_reason(layer, hopper, DW_ACTION_FUSE, "one pass");
    layer.fused = NULL;
    layer.adapted = "no mask";
    assert_reason(layer, hopper, DW_ACTION_ADAPT, "no mask");
}

/* ---- numbers, blocks and forms ---- */

static void blocks_follow_target_and_precision(void **state) {
    (void)state;
    static const struct {
        dw_plan_options options;
        const char *block, *weight_block, *precision;
    } cases[] = {
        {{0}, "1x32", "128x128", "mxfp8"},
        {{.target = "hopper"}, "1x128", "128x128", "mxfp8"},
        {{.target = "blackwell"}, "1x32", "1x32", "mxfp8"},
        {{.block_size = 32}, "1x32", "1x32", "mxfp8"},
        {{.block_size = 128}, "1x128", "128x128", "mxfp8"},
        {{.target = "hopper", .block_size = 32}, "1x32", "1x32", "mxfp8"},
        {{.precision = "fp8"}, "1x128", "128x128", "fp8"},
        {{.device = "hopper", .precision = "fp8"}, "1x128", "128x128", "fp8"},
    };
    dw_layer layer = linear("a", 4096, 4096);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dw_plan *plan;
        const dw_decision *decision = only_decision(&layer, cases[i].options, &plan);
        assert_string_equal(decision->block, cases[i].block);
        assert_string_equal(decision->weight_block, cases[i].weight_block);
        assert_string_equal(decision->precision, cases[i].precision);
        dw_plan_destroy(plan);
    }
}

static void forms_follow_gradients(void **state) {
    (void)state;
    static const struct {
        bool frozen, no_input_gradient, inference;
        dw_forms input, gradient, weight;
    } cases[] = {
        {false, false, false, DW_FORMS_BOTH, DW_FORMS_BOTH, DW_FORMS_BOTH},
        {true, false, false, DW_FORMS_ROW, DW_FORMS_ROW, DW_FORMS_BOTH},
        {false, true, false, DW_FORMS_BOTH, DW_FORMS_TRANSPOSED, DW_FORMS_ROW},
        {false, false, true, DW_FORMS_ROW, DW_FORMS_NONE, DW_FORMS_ROW},
    };
    double before = 0;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dw_layer layer = linear("a", 4096, 4096);
        layer.frozen = cases[i].frozen;
        layer.no_input_gradient = cases[i].no_input_gradient;
        dw_plan *plan;
        const dw_decision *d =
            only_decision(&layer, (dw_plan_options){.device = "hopper", .inference = cases[i].inference}, &plan);
        assert_int_equal(d->input_forms, cases[i].input);
        assert_int_equal(d->gradient_forms, cases[i].gradient);
        assert_int_equal(d->weight_forms, cases[i].weight);
        double ms = d->candidate.forward_ms + d->candidate.backward_ms;
        if (i == 0) before = ms;
        if (i > 0) assert_true(ms < before); /* a product less */
        if (cases[i].inference) assert_true(d->candidate.backward_ms == 0 && d->full.backward_ms == 0);
        dw_plan_destroy(plan);
    }
}

/* ---- patterns ---- */

static void patterns_match_as_in_a_shell(void **state) {
    (void)state;
    static const struct {
        const char *name, *pattern;
        bool matches;
    } cases[] = {
        {"blocks.0.up", "blocks.0.up", true},
        {"blocks.0.up", "blocks.0", true},
        {"blocks.0.up", "blocks", true},
        {"blocks.0.up", "block", false},
        {"blocks.0.up", "*.up", true},
        {"blocks.0.up", "*up*", true},
        {"blocks.0.up", "*", true},
        {"", "*", true},
        {"", "", true},
        {"a", "", false},
        {"blocks.10.up", "blocks.?", false},
        {"blocks.1.up", "blocks.?", true},
        {"blocks.1.up", "blocks.[0-3]", true},
        {"blocks.4.up", "blocks.[0-3]", false},
        {"blocks.4.up", "blocks.[!0-3]", true},
        {"a]b", "a[]]b", true},
        {"a[b", "a[b", true},
        {"a-b", "a[x-]b", true},
        {"Blocks", "blocks", false},
        {"aaab", "*a*b", true},
        {"schicht.\xC3\xA4", "schicht.?", true},
        {"schicht.\xC3\xA4", "schicht.[\xC3\xA0-\xC3\xAF]", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (dw_plan_matches(cases[i].name, cases[i].pattern) != cases[i].matches)
            fail_msg("\"%s\" and \"%s\"", cases[i].name, cases[i].pattern);
    assert_false(dw_plan_matches(NULL, "*"));
}

static void a_hard_pattern_takes_no_time(void **state) {
    (void)state;
    char name[4097];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_false(dw_plan_matches(name, "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b"));
}

static void wishes_decide_first_and_override_roles(void **state) {
    (void)state;
    described d = {0};
    add(&d, linear("blocks.0.up", 4096, 1024));
    add(&d, linear("blocks.0.down", 4096, 4096));
    dw_layer head = linear("out", 4096, 32000);
    head.kind = DW_LAYER_OUTPUT_HEAD;
    head.kind_reason = "named out";
    add(&d, head);
    const dw_plan_wish wishes[] = {{"blocks.0.up", "mxfp8"}, {"blocks.0", "keep"}, {"out", "mxfp8"}};
    dw_plan *plan = make(&d, (dw_plan_options){.device = "hopper", .wishes = wishes, .wish_count = 3});
    assert_string_equal(dw_plan_decision(plan, 0)->reason, "the strategy says mxfp8"); /* though it may lose */
    assert_string_equal(dw_plan_decision(plan, 1)->reason, "the strategy says keep");
    assert_int_equal(dw_plan_decision(plan, 2)->action, DW_ACTION_CONVERT);
    assert_null(dw_plan_decision(plan, 3));
    dw_plan_destroy(plan);
}

static void what_contradicts_is_an_error(void **state) {
    (void)state;
    described d = {0};
    add(&d, linear("blocks.0.up", 4096, 4096));
    add(&d, linear("blocks.0.down", 4096, 4096));
    dw_layer norm = {.name = "norm", .kind = DW_LAYER_NORM, .dtype = "bfloat16", .shares_input = -1, .input_from = -1};
    add(&d, norm);
    const char *const up[] = {"*.up"}, *const blocks[] = {"blocks.0"}, *const typo[] = {"blocs.0.up"},
                      *const far[] = {"qqqqqqqqqqqqqqqqqqqqqqqq"}, *const norms[] = {"norm"};
    const dw_plan_wish keep = {"*.up", "keep"}, convert = {"*.up", "mxfp8"}, fp8 = {"*.up", "fp8"};
    const struct {
        dw_plan_options options;
        const char *part;
    } cases[] = {
        {{.precision = "int8"}, "precision='int8' is not known; expected one of 'mxfp8', 'fp8', 'bf16'"},
        {{.target = "volta"}, "target='volta'"},
        {{.device = "tpu"}, "device='tpu'"},
        {{.strategy = "fast"}, "strategy='fast'"},
        {{.gpu = "h300"}, "gpu='h300'"},
        {{.gpu = "h100"}, "gpu='h100' contradicts target='cpu'"},
        {{.device = "hopper", .target = "blackwell"}, "target='blackwell' contradicts device='hopper'"},
        {{.block_size = 64}, "block_size=64"},
        {{.block_size = 128, .target = "blackwell"}, "block_size=128 contradicts target='blackwell'"},
        {{.block_size = 32, .precision = "fp8"}, "block_size=32 contradicts precision='fp8'"},
        {{.precision = "fp8", .target = "blackwell"}, "precision='fp8' contradicts target='blackwell'"},
        {{.precision = "bf16", .strategy = "mxfp8_dense"}, "strategy='mxfp8_dense' contradicts precision='bf16'"},
        {{.precision = "fp8", .strategy = "bf16_fused"}, "strategy='bf16_fused' contradicts precision='fp8'"},
        {{.wishes = &fp8, .wish_count = 1}, "strategy['*.up']='fp8' is not known; expected 'mxfp8' to convert"},
        {{.precision = "bf16", .wishes = &convert, .wish_count = 1}, "contradicts precision='bf16'"},
        {{.tokens = 16, .sequence = 32}, "sequence=32"},
        {{.tokens = -1}, "must not be negative"},
        {{.tokens = INT64_MAX}, "more than 2^40"},
        {{.skip = blocks, .skip_count = 1, .only = up, .only_count = 1},
         "skip='blocks.0' and only='*.up' contradict each other for module 'blocks.0.up'"},
        {{.skip = blocks, .skip_count = 1, .wishes = &convert, .wish_count = 1}, "strategy['*.up']='mxfp8' contradict"},
        {{.only = blocks, .only_count = 1, .wishes = &keep, .wish_count = 1}, "strategy['*.up']='keep' contradict"},
        {{.skip = typo, .skip_count = 1}, "did you mean 'blocks.0.up'?"},
        {{.only = far, .only_count = 1}, "matches no module of Described; their names are like 'blocks.0.up'"},
        {{.only = norms, .only_count = 1}, "matches modules of Described, but none that could be converted"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dw_plan *plan = NULL;
        assert_failure(dw_plan_create(&d.model, &cases[i].options, &plan), DW_ERROR_INVALID_ARGUMENT, cases[i].part);
        assert_null(plan);
    }
    assert_failure(dw_plan_check_options(&cases[0].options), DW_ERROR_INVALID_ARGUMENT, "int8");
}

static void broken_models_are_refused(void **state) {
    (void)state;
    static const char *const parts[] = {"kind", "negative", "shares_input", "input_from", "no number", "2^40"};
    for (int i = 0; i < 6; i++) {
        described d = {0};
        dw_layer layer = linear("a", 64, 64);
        if (i == 0) layer.kind = DW_LAYER_KIND_COUNT;
        if (i == 1) layer.in_features = -64;
        if (i == 2) layer.shares_input = 0;
        if (i == 3) layer.input_from = 1;
        if (i == 4) layer.runs = NAN;
        if (i == 5) layer.out_features = INT64_MAX;
        add(&d, layer);
        dw_plan *plan = NULL;
        assert_failure(dw_plan_create(&d.model, &cpu, &plan), DW_ERROR_INVALID_ARGUMENT, parts[i]);
    }
}

/* What is absurd, but no contradiction, is planned without overflow (the sanitizers look on). */
static void absurd_sizes_do_no_harm(void **state) {
    (void)state;
    described d = {0};
    for (int i = 0; i < 3; i++) {
        dw_layer layer = linear("a", (int64_t)1 << 40, (int64_t)1 << 40);
        layer.kind = i == 0 ? DW_LAYER_LINEAR : i == 1 ? DW_LAYER_NORM : DW_LAYER_ATTENTION;
        layer.parameters = (int64_t)1 << 60;
        layer.matrices = (int64_t)1 << 40;
        layer.runs = 1e300;
        add(&d, layer);
    }
    d.model.parameters = INT64_MAX;
    static const char *const devices[] = {"cpu", "hopper", "blackwell"};
    for (int i = 0; i < 3; i++) {
        dw_plan *plan = make(&d, (dw_plan_options){.device = devices[i], .tokens = (int64_t)1 << 40});
        dw_plan_summary summary;
        dw_plan_summarize(plan, &summary);
        for (int format = 0; format < DW_PLAN_FORMAT_COUNT; format++) {
            char *text;
            ASSERT_OK(dw_plan_explain(plan, (dw_plan_format)format, &text));
            dw_plan_text_free(text);
        }
        dw_plan_destroy(plan);
    }
}

static void nothing_to_convert_names_the_first_reasons(void **state) {
    (void)state;
    described d = {0};
    dw_plan *plan = make(&d, cpu);
    assert_failure(dw_plan_expect_conversion(plan), DW_ERROR_INVALID_ARGUMENT, "has no nn.Linear");
    dw_plan_destroy(plan);
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    for (int i = 0; i < 5; i++)
        add(&d, linear(names[i], 8, 8));
    plan = make(&d, cpu);
    assert_failure(dw_plan_expect_conversion(plan), DW_ERROR_INVALID_ARGUMENT, "all 5 candidate layers");
    assert_failure(dw_plan_expect_conversion(plan), DW_ERROR_INVALID_ARGUMENT, "a: too small");
    assert_failure(dw_plan_expect_conversion(plan), DW_ERROR_INVALID_ARGUMENT, "; and 2 more");
    dw_plan_destroy(plan);
}

static void a_frontier_size_model_is_planned_in_no_time(void **state) {
    (void)state;
    enum { BLOCKS = 32, EACH = 7 };
    static const struct {
        const char *leaf;
        int64_t in, out;
    } parts[EACH] = {{"q", 4096, 4096},     {"k", 4096, 1024},   {"v", 4096, 1024},    {"o", 4096, 4096},
                     {"gate", 4096, 14336}, {"up", 4096, 14336}, {"down", 14336, 4096}};
    static dw_layer layers[BLOCKS * EACH];
    static char names[BLOCKS * EACH][64];
    static const char *pointers[BLOCKS * EACH];
    for (int i = 0; i < BLOCKS * EACH; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%d.%s", i / EACH, parts[i % EACH].leaf);
        pointers[i] = names[i];
        layers[i] = linear(names[i], parts[i % EACH].in, parts[i % EACH].out);
        if (i % EACH == 1 || i % EACH == 2) layers[i].shares_input = i / EACH * EACH;
    }
    dw_model model = {.name = "Llama",
                      .layers = layers,
                      .layer_count = BLOCKS * EACH,
                      .names = pointers,
                      .name_count = BLOCKS * EACH};
    const char *const skip[] = {"*.layers.0.*", "*.layers.31"};
    dw_plan_options options = {.device = "hopper", .skip = skip, .skip_count = 2};
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    dw_plan *plan = NULL;
    ASSERT_OK(dw_plan_create(&model, &options, &plan));
    clock_gettime(CLOCK_MONOTONIC, &after);
    double ms = 1e3 * (double)(after.tv_sec - before.tv_sec) + 1e-6 * (double)(after.tv_nsec - before.tv_nsec);
    print_message("%d layers planned in %.2f ms\n", BLOCKS * EACH, ms);
    assert_true(ms < 200); /* 20 are promised; the rest is for sanitizers, emulators and busy machines */
    dw_plan_summary summary;
    dw_plan_summarize(plan, &summary);
    assert_int_equal(summary.converted, 30 * 5);
    assert_int_equal(summary.kept, 224 - 150);
    dw_plan_destroy(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_reason),
        cmocka_unit_test(each_kind),
        cmocka_unit_test(blocks_follow_target_and_precision),
        cmocka_unit_test(forms_follow_gradients),
        cmocka_unit_test(patterns_match_as_in_a_shell),
        cmocka_unit_test(a_hard_pattern_takes_no_time),
        cmocka_unit_test(wishes_decide_first_and_override_roles),
        cmocka_unit_test(what_contradicts_is_an_error),
        cmocka_unit_test(broken_models_are_refused),
        cmocka_unit_test(absurd_sizes_do_no_harm),
        cmocka_unit_test(nothing_to_convert_names_the_first_reasons),
        cmocka_unit_test(a_frontier_size_model_is_planned_in_no_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
