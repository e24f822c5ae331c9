/* Predictions: near what was measured, sensible elsewhere; Blackwell's budgets; the plan in words. */
#include "support.h"

#include <math.h>
#include <string.h>

#include "plan/plan.h"

static dw_layer linear(int64_t in, int64_t out) {
    return (dw_layer){.name = "a",
                      .type = "nn.Linear",
                      .in_features = in,
                      .out_features = out,
                      .parameters = in * out,
                      .dtype = "bfloat16",
                      .shares_input = -1,
                      .input_from = -1};
}

/* The decision for one layer; the plan is kept until the next call. */
static const dw_decision *decide(dw_layer layer, dw_plan_options options) {
    static dw_layer kept;
    static dw_model model;
    static dw_plan_options wanted;
    static dw_plan *plan;
    dw_plan_destroy(plan);
    kept = layer;
    wanted = options;
    model = (dw_model){.name = "One", .layers = &kept, .layer_count = 1};
    ASSERT_OK(dw_plan_create(&model, &wanted, &plan));
    return dw_plan_decision(plan, 0);
}

static void assert_near(double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance * expected))
        fail_msg("%g is not within %g%% of %g", got, 100 * tolerance, expected);
}

/* The layers of the table come out of the curves as they went in: measured rates of a layer alone, quantization
 * included; and where the host takes longer than the device, the host's time. */
static void predictions_fit_what_was_measured(void **state) {
    (void)state;
    int layers = 0;
    for (size_t i = 0; i < dw_evidence_table_size; i++) {
        const dw_evidence_row *row = &dw_evidence_table[i];
        if (row->kind != DW_EVIDENCE_LAYER || strcmp(row->device, "h100") != 0) continue;
        const dw_decision *d =
            decide(linear(row->k, row->n), (dw_plan_options){.device = "hopper", .tokens = row->m, .sequence = 16});
        const dw_cost *cost = row->format == DW_FORMAT_FULL ? &d->full : &d->candidate;
        double gflop = 6e-9 * (double)row->m * (double)row->n * (double)row->k;
        const double device_ms = gflop / row->value;
        assert_near(cost->alone_ms, device_ms > cost->host_ms ? device_ms : cost->host_ms, 0.05);
        layers++;
    }
    assert_true(layers >= 10);
}

static void times_grow_with_the_work(void **state) {
    (void)state;
    static const char *const gpus[] = {"h100", "h200", "b200", "gb200"};
    for (int gpu = 0; gpu < 4; gpu++) {
        double before[2] = {0, 0};
        for (int64_t tokens = 256; tokens <= 262144; tokens *= 2) {
            const dw_decision *d = decide(
                linear(4096, 14336),
                (dw_plan_options){.device = gpu < 2 ? "hopper" : "blackwell", .gpu = gpus[gpu], .tokens = tokens});
            assert_true(d->full.known && d->candidate.known);
            assert_true(isfinite(d->full.alone_ms) && isfinite(d->candidate.alone_ms));
            assert_true(d->full.alone_ms >= before[0] && d->candidate.alone_ms >= before[1]);
            before[0] = d->full.alone_ms;
            before[1] = d->candidate.alone_ms;
        }
        /* Never above the peak that the data sheet names. */
        dw_device_facts facts;
        ASSERT_OK(dw_device_facts_find(gpus[gpu], &facts));
        double flops = 6.0 * 262144 * 4096 * 14336;
        assert_true(flops / (before[0] * 1e-3) < facts.bf16_rate);
        assert_true(flops / (before[1] * 1e-3) < facts.fp8_rate);
    }
}

static void who_shares_an_input_pays_for_it_once(void **state) {
    (void)state;
    dw_layer layers[2] = {linear(4096, 4096), linear(4096, 4096)};
    layers[1].name = "b";
    dw_model model = {.name = "Two", .layers = layers, .layer_count = 2};
    dw_plan_options options = {.device = "hopper"};
    double quantize[2];
    int64_t saved[2];
    for (int shared = 0; shared < 2; shared++) {
        dw_plan *plan;
        layers[1].shares_input = shared ? 0 : -1;
        ASSERT_OK(dw_plan_create(&model, &options, &plan));
        quantize[shared] = dw_plan_decision(plan, 1)->candidate.quantize_ms;
        saved[shared] = dw_plan_decision(plan, 1)->candidate.saved_bytes;
        dw_plan_destroy(plan);
    }
    dw_device_facts h100;
    ASSERT_OK(dw_device_facts_find("h100", &h100));
    /* 8192 x 4096 elements, 2 bytes read and one written in each orientation. */
    assert_near(quantize[0] - quantize[1], 1e3 * 8192 * 4096 * 4 / dw_rate_of(&h100, DW_RATE_QUANTIZE_BOTH), 0.01);
    assert_true(saved[0] > 8192 * 4096 && saved[1] == 0);
}

static void memory_counts_what_is_kept(void **state) {
    (void)state;
    const dw_decision *d = decide(linear(4096, 1024), (dw_plan_options){.device = "hopper", .tokens = 1000});
    int64_t weights = 4096 * 1024, input = 1000 * 4096;
    assert_int_equal(d->full.weight_bytes, weights * 4); /* weight and gradient in BF16 */
    assert_int_equal(d->full.saved_bytes, input * 2);
    assert_int_equal(d->candidate.weight_bytes,
                     weights * 4 + weights * 2 * (1 + 4.0 / 128)); /* two forms with scales */
    assert_int_equal(d->candidate.saved_bytes, input * (1 + 4.0 / 128));
    d = decide(linear(4096, 1024), (dw_plan_options){.device = "hopper", .tokens = 1000, .inference = true});
    assert_int_equal(d->full.weight_bytes, weights * 2);
    assert_int_equal(d->candidate.saved_bytes, 0);
}

static void measurements_override_predictions(void **state) {
    (void)state;
    const dw_measurement measured[] = {{8192, 4096, 4096, 1.0, 1.5}, {8192, 4096, 1024, 1.0, 0.5}};
    dw_plan_options options = {.device = "hopper", .measurements = measured, .measurement_count = 2};
    const dw_decision *d = decide(linear(4096, 4096), options);
    assert_true(d->measured);
    assert_int_equal(d->action, DW_ACTION_KEEP);
    assert_non_null(strstr(d->reason, "measured to lose: 1.5 ms converted against 1 ms at 8,192 tokens"));
    d = decide(linear(4096, 1024), options); /* below the size that was measured to win in general */
    assert_int_equal(d->action, DW_ACTION_CONVERT);
    assert_non_null(strstr(d->reason, "measured to win"));
    assert_near(d->candidate.forward_ms + d->candidate.backward_ms, 0.5, 1e-9);
    options.tokens = 4096; /* another size: not measured */
    assert_false(decide(linear(4096, 4096), options)->measured);
    dw_plan_options on_cpu = {.measurements = measured, .measurement_count = 2};
    assert_int_equal(decide(linear(4096, 4096), on_cpu)->action, DW_ACTION_CONVERT); /* for its numerics */
}

/* At the size that a reason names, the layer would win; a little below, it would not. */
static void crossovers_are_where_the_plan_says(void **state) {
    (void)state;
    const dw_decision *d = decide(linear(4096, 4096), (dw_plan_options){.device = "blackwell", .tokens = 1024});
    const char *at = strstr(d->reason, "it would win from about ");
    if (!at) fail_msg("\"%s\" names no crossover", d->reason);
    int64_t tokens = 0;
    for (at += strlen("it would win from about "); (*at >= '0' && *at <= '9') || *at == ','; at++)
        if (*at != ',') tokens = tokens * 10 + (*at - '0');
    assert_true(tokens > 1024);
    dw_plan_options there = {.device = "blackwell", .tokens = tokens};
    assert_int_equal(decide(linear(4096, 4096), there)->action, DW_ACTION_CONVERT);
    there.tokens = tokens * 9 / 10;
    assert_int_equal(decide(linear(4096, 4096), there)->action, DW_ACTION_KEEP);
}

static void facts_and_evidence_have_sources(void **state) {
    (void)state;
    dw_device_facts facts;
    for (size_t i = 0; i < dw_device_facts_count(); i++) {
        ASSERT_OK(dw_device_facts_get(i, &facts));
        assert_true(*facts.source);
        assert_int_equal(facts.measured, strcmp(facts.family, "blackwell") != 0);
    }
    assert_failure(dw_device_facts_get(99, &facts), DW_ERROR_INVALID_ARGUMENT, "out of range");
    assert_failure(dw_device_facts_find("a100", &facts), DW_ERROR_INVALID_ARGUMENT, "a100");
    dw_evidence evidence;
    for (size_t i = 0; i < dw_evidence_count(); i++) {
        ASSERT_OK(dw_evidence_get(i, &evidence));
        assert_true(*evidence.what && *evidence.source && *evidence.unit && evidence.value > 0);
    }
    assert_failure(dw_evidence_get(dw_evidence_count(), &evidence), DW_ERROR_INVALID_ARGUMENT, "out of range");
}

/* ---- tiles ---- */

static void tiles_keep_within_the_budget(void **state) {
    (void)state;
    dw_device_facts b200, hopper;
    ASSERT_OK(dw_device_facts_find("b200", &b200));
    ASSERT_OK(dw_device_facts_find("h100", &hopper));
    dw_mma_tile_budget budget;
    /* Two accumulators of 256 columns fill tensor memory, and the scales have no room. */
    dw_mma_tile tile = {128, 256, 128, 2, 2, 1};
    ASSERT_OK(dw_mma_tile_check(&tile, &b200, &budget));
    assert_int_equal(budget.accumulator_columns, 512);
    assert_int_equal(budget.scale_columns, 2 * 4 * 3); /* two stages, 4 columns for A and each half of B */
    assert_false(budget.fits);
    assert_non_null(strstr(budget.reason, "tensor memory"));
    tile.cols = 192;
    ASSERT_OK(dw_mma_tile_check(&tile, &b200, &budget));
    assert_true(budget.fits && budget.tmem_columns == 512);
    /* Shared memory: operands and scales of each stage, 128 x 64 BF16 on the way out, 1024 bytes of barriers. */
    assert_int_equal(budget.shared_bytes, 2 * ((128 + 192) * 128 + (128 + 256) * 4) + 128 * 64 * 2 + 1024);
    tile.stages = 6;
    ASSERT_OK(dw_mma_tile_check(&tile, &b200, &budget));
    assert_false(budget.fits);
    assert_non_null(strstr(budget.reason, "shared memory"));
    tile.cols = 250;
    assert_failure(dw_mma_tile_check(&tile, &b200, &budget), DW_ERROR_INVALID_ARGUMENT, "tcgen05.mma");
    tile.cols = 128;
    assert_failure(dw_mma_tile_check(&tile, &hopper, &budget), DW_ERROR_UNSUPPORTED, "no tensor memory");
}

static void chosen_tiles_fit(void **state) {
    (void)state;
    dw_device_facts b200;
    ASSERT_OK(dw_device_facts_find("b200", &b200));
    size_t refused = 0;
    for (size_t i = 0; i < dw_mma_tile_candidate_count(); i++) {
        dw_mma_tile tile;
        dw_mma_tile_budget budget;
        ASSERT_OK(dw_mma_tile_candidate_get(i, &tile));
        ASSERT_OK(dw_mma_tile_check(&tile, &b200, &budget));
        refused += !budget.fits;
    }
    assert_true(refused > 0 && refused < dw_mma_tile_candidate_count());
    for (int64_t rows = 64; rows <= 65536; rows *= 4)
        for (int64_t cols = 64; cols <= 65536; cols *= 4) {
            dw_mma_tile tile;
            dw_mma_tile_budget budget;
            ASSERT_OK(dw_mma_tile_choose(rows, cols, &b200, &tile));
            ASSERT_OK(dw_mma_tile_check(&tile, &b200, &budget));
            assert_true(budget.fits);
        }
    dw_device_facts small = b200;
    dw_mma_tile tile;
    small.shared_bytes = 16384;
    assert_failure(dw_mma_tile_choose(4096, 4096, &small, &tile), DW_ERROR_UNSUPPORTED, "no tile fits");
    const dw_decision *d = decide(linear(8192, 8192), (dw_plan_options){.device = "blackwell"});
    assert_true(d->tile.rows > 0);
}

/* ---- in words ---- */

static void texts_escape_what_models_bring(void **state) {
    (void)state;
    dw_layer layer = linear(64, 64);
    layer.name = "a<b>&\"'\n\x01";
    dw_model model = {.name = "M<script>", .layers = &layer, .layer_count = 1, .parameters = 4096};
    dw_plan_options options = {0};
    dw_plan *plan;
    ASSERT_OK(dw_plan_create(&model, &options, &plan));
    char *text;
    ASSERT_OK(dw_plan_explain(plan, DW_PLAN_TEXT, &text));
    assert_non_null(strstr(text, "a<b>&\"'?? "));
    assert_non_null(strstr(text, "1 of 1 layers converted to mxfp8"));
    dw_plan_text_free(text);
    ASSERT_OK(dw_plan_explain(plan, DW_PLAN_JSON, &text));
    assert_non_null(strstr(text, "\"a<b>&\\\"'\\u000a\\u0001\""));
    dw_plan_text_free(text);
    ASSERT_OK(dw_plan_explain(plan, DW_PLAN_HTML, &text));
    assert_null(strstr(text, "M<script>"));
    assert_non_null(strstr(text, "M&lt;script&gt;"));
    assert_non_null(strstr(text, "a&lt;b&gt;&amp;&quot;&#39;"));
    assert_null(strchr(text, '\x01'));
    assert_null(strstr(text, "http"));
    dw_plan_text_free(text);
    assert_failure(dw_plan_explain(plan, DW_PLAN_FORMAT_COUNT, &text), DW_ERROR_INVALID_ARGUMENT, "format");
    dw_plan_destroy(plan);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predictions_fit_what_was_measured),
        cmocka_unit_test(times_grow_with_the_work),
        cmocka_unit_test(who_shares_an_input_pays_for_it_once),
        cmocka_unit_test(memory_counts_what_is_kept),
        cmocka_unit_test(measurements_override_predictions),
        cmocka_unit_test(crossovers_are_where_the_plan_says),
        cmocka_unit_test(facts_and_evidence_have_sources),
        cmocka_unit_test(tiles_keep_within_the_budget),
        cmocka_unit_test(chosen_tiles_fit),
        cmocka_unit_test(texts_escape_what_models_bring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
