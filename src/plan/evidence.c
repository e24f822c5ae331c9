/* What is known of devices, and how measured figures become rates for other shapes. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "plan/plan.h"

static const dw_device_facts devices[] = {
    {"cpu", "a CPU that emulates, 2 threads", "cpu", 0, 0, 22.6e9, 0.127e12, 0.127e12, 0, 0, 0, true,
     "bench/results/cpu, 2026-11-22"},
    {"h100", "NVIDIA H100 SXM 80 GB", "hopper", 132, (int64_t)80 << 30, 3.01e12, 989e12, 1979e12, 232448, 0, 0, true,
     "bench/results/h100, 2026-11-22; peaks: NVIDIA's data sheet"},
    {"h200", "NVIDIA H200 SXM 141 GB", "hopper", 132, (int64_t)141 << 30, 4.21e12, 989e12, 1979e12, 232448, 0, 0, true,
     "project anchor measurements, H200, 2026-11-22; peaks: NVIDIA's data sheet"},
    {"b200", "NVIDIA B200 180 GB", "blackwell", 148, (int64_t)180 << 30, 6.5e12, 2250e12, 4500e12, 232448, 128, 512,
     false, "NVIDIA's data sheet; not measured here, efficiency assumed as on H200"},
    {"gb200", "NVIDIA GB200 186 GB", "blackwell", 152, (int64_t)186 << 30, 6.5e12, 2500e12, 5000e12, 232448, 128, 512,
     false, "NVIDIA's data sheet; not measured here, efficiency assumed as on H200"},
};
enum { DEVICE_COUNT = sizeof devices / sizeof devices[0] };

#define EVIDENCE(device, kind, format, rate, m, n, k, value, source)                                                   \
    {device, DW_EVIDENCE_##kind, DW_FORMAT_##format, DW_RATE_##rate, m, n, k, value, source},
const dw_evidence_row dw_evidence_table[] = {
#include "plan/evidence.inc"
};
#undef EVIDENCE
const size_t dw_evidence_table_size = sizeof dw_evidence_table / sizeof dw_evidence_table[0];

size_t dw_device_facts_count(void) {
    return DEVICE_COUNT;
}

dw_status dw_device_facts_get(size_t index, dw_device_facts *facts) {
    if (!facts) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "facts is NULL; pass the address of a dw_device_facts");
    if (index >= DEVICE_COUNT)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "device %zu is out of range; expected less than %d", index,
                       DEVICE_COUNT);
    *facts = devices[index];
    return DW_OK;
}

dw_status dw_device_facts_find(const char *name, dw_device_facts *facts) {
    if (!name || !facts) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "name or facts is NULL; pass both");
    for (size_t i = 0; i < DEVICE_COUNT; i++)
        if (strcmp(devices[i].name, name) == 0) return dw_device_facts_get(i, facts);
    return dw_fail(DW_ERROR_INVALID_ARGUMENT, "gpu='%.40s' is not known; expected cpu, h100, h200, b200 or gb200",
                   name);
}

/* ---- the table, for people ---- */

size_t dw_evidence_count(void) {
    return dw_evidence_table_size;
}

static const char *rate_text(dw_rate rate) {
    switch (rate) {
    case DW_RATE_NONE: break;
    case DW_RATE_COPY: return "copy";
    case DW_RATE_QUANTIZE_ONE: return "quantization, one orientation";
    case DW_RATE_QUANTIZE_BOTH: return "quantization, both orientations";
    case DW_RATE_DECODE: return "decoding";
    case DW_RATE_NORM: return "norm with quantization";
    case DW_RATE_NORM_BACKWARD: return "norm, backward";
    case DW_RATE_GATED: return "gated activation with quantization";
    case DW_RATE_GATED_BACKWARD: return "gated activation, backward";
    case DW_RATE_LOSS: return "cross-entropy";
    case DW_RATE_LOSS_BACKWARD: return "cross-entropy, backward";
    }
    return "";
}

static const char *kind_text(const dw_evidence_row *row, const char **unit) {
    *unit = "TFLOP/s";
    switch (row->kind) {
    case DW_EVIDENCE_LAYER: return "layer, forward + backward";
    case DW_EVIDENCE_PRODUCT: return "product";
    case DW_EVIDENCE_WEIGHT: return "weight gradient's product";
    case DW_EVIDENCE_ATTENTION: return "causal attention, forward + backward";
    case DW_EVIDENCE_HOST: *unit = "ms"; return "host time of a layer, forward + backward";
    case DW_EVIDENCE_RATE: *unit = "TB/s"; return rate_text(row->rate);
    }
    return "";
}

dw_status dw_evidence_get(size_t index, dw_evidence *evidence) {
    if (!evidence) return dw_fail(DW_ERROR_INVALID_ARGUMENT, "evidence is NULL; pass the address of a dw_evidence");
    if (index >= dw_evidence_table_size)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "evidence %zu is out of range; expected less than %zu", index,
                       dw_evidence_table_size);
    const dw_evidence_row *row = &dw_evidence_table[index];
    *evidence = (dw_evidence){.device = row->device, .value = row->value, .source = row->source};
    const char *what = kind_text(row, &evidence->unit), *form = row->format == DW_FORMAT_FULL ? "own precision" : "FP8";
    if (row->m)
        snprintf(evidence->what, sizeof evidence->what, "%s, %s, %lld x %lld x %lld", what, form, (long long)row->m,
                 (long long)row->n, (long long)row->k);
    else
        snprintf(evidence->what, sizeof evidence->what, "%s, %s", what, form);
    return DW_OK;
}

/* ---- lookup ---- */

/* Whose figures stand in for a device's own: the same processor first. */
static const char *relative_of(const dw_device_facts *facts) {
    if (strcmp(facts->name, "h100") == 0) return "h200";
    if (strcmp(facts->name, "h200") == 0) return "h100";
    return strcmp(facts->family, "blackwell") == 0 ? "h200" : NULL;
}

static const dw_evidence_row *find(const char *device, dw_evidence_kind kind, dw_format format, dw_rate rate) {
    for (size_t i = 0; i < dw_evidence_table_size; i++) {
        const dw_evidence_row *row = &dw_evidence_table[i];
        if (strcmp(row->device, device) == 0 && row->kind == kind && row->format == format && row->rate == rate)
            return row;
    }
    return NULL;
}

double dw_rate_of(const dw_device_facts *facts, dw_rate rate) {
    dw_format format = rate == DW_RATE_COPY ? DW_FORMAT_FULL : DW_FORMAT_QUANTIZED;
    const dw_evidence_row *own = find(facts->name, DW_EVIDENCE_RATE, format, rate);
    if (own) return own->value * 1e12;
    /* The same part of what a copy reaches as on the H100, where all of them were measured. */
    const dw_evidence_row *other = find("h100", DW_EVIDENCE_RATE, format, rate);
    const dw_evidence_row *copy = find("h100", DW_EVIDENCE_RATE, DW_FORMAT_FULL, DW_RATE_COPY);
    return other && copy ? facts->memory_rate * other->value / copy->value : facts->memory_rate;
}

double dw_evidence_value(const dw_device_facts *facts, dw_evidence_kind kind, dw_format format) {
    const dw_evidence_row *row = find(facts->name, kind, format, DW_RATE_NONE);
    if (row) return row->value;
    if (strcmp(facts->family, "cpu") == 0) return 0;
    row = find("h100", kind, format, DW_RATE_NONE);
    if (!row) row = find("h200", kind, format, DW_RATE_NONE);
    if (!row) return 0;
    /* Rates grow with the tensor cores, times do not. */
    return kind == DW_EVIDENCE_ATTENTION ? row->value * facts->bf16_rate / 989e12 : row->value;
}

/* ---- products ---- */

typedef struct dims {
    double m, n, k;
} dims;

/* The part of the peak that the shape allows: whole tiles in whole waves over the multiprocessors, and a pipeline that
 * fills and drains once for each tile, as long as a reduction of PIPELINE_DEPTH. The best of three common tiles. */
enum { PIPELINE_DEPTH = 256 };
static double utilization(const dw_device_facts *facts, dims d, double groups) {
    static const struct {
        double rows, cols, efficiency;
    } tiles[] = {{128, 256, 1.0}, {128, 128, 0.9}, {64, 128, 0.75}};
    if (facts->multiprocessors == 0) return 1;
    double best = 0;
    for (size_t i = 0; i < sizeof tiles / sizeof tiles[0]; i++) {
        double across = ceil(d.m / tiles[i].rows) * ceil(d.n / tiles[i].cols) * groups;
        double waves = ceil(across / facts->multiprocessors);
        double covered = waves * facts->multiprocessors * tiles[i].rows * tiles[i].cols;
        double part = d.m * d.n * groups / covered * tiles[i].efficiency;
        if (part > best) best = part;
    }
    return best * d.k / (d.k + PIPELINE_DEPTH);
}

static double peak(const dw_device_facts *facts, dw_format format) {
    return format == DW_FORMAT_QUANTIZED ? facts->fp8_rate : facts->bf16_rate;
}

/* ms of one product if only the shape held it back. */
static double ideal_ms(const dw_device_facts *facts, dw_format format, dims d, double groups) {
    if (d.m <= 0 || d.n <= 0 || d.k <= 0) return 0;
    return 2e3 * d.m * d.n * d.k * groups / (peak(facts, format) * utilization(facts, d, groups));
}

static double ideal_layer_ms(const dw_device_facts *facts, dw_format format, dims d, double groups) {
    return ideal_ms(facts, format, d, groups) + ideal_ms(facts, format, (dims){d.m, d.k, d.n}, groups) +
           ideal_ms(facts, format, (dims){d.n, d.k, d.m}, groups);
}

/* What a layer's measurement includes besides its products: the quantization of x, dy and w from BF16 in both
 * orientations (on the CPU: from FP32, and decoding). */
static double overhead_ms(const dw_device_facts *facts, dw_format format, dims d) {
    if (format == DW_FORMAT_FULL) return 0;
    double elements = d.m * d.k + d.m * d.n + d.n * d.k;
    if (facts->multiprocessors) return 4e3 * elements / dw_rate_of(facts, DW_RATE_QUANTIZE_BOTH);
    return 6e3 * elements / dw_rate_of(facts, DW_RATE_QUANTIZE_BOTH) +
           10e3 * elements / dw_rate_of(facts, DW_RATE_DECODE);
}

/* How near the products of a measured row came to what their shape allows. */
static double reached(const dw_device_facts *facts, dw_format format, const dw_evidence_row *row) {
    dims d = {(double)row->m, (double)row->n, (double)row->k};
    double flops = 2 * d.m * d.n * d.k, rate = row->value * 1e12;
    if (row->kind == DW_EVIDENCE_LAYER)
        return ideal_layer_ms(facts, format, d, 1) / (3e3 * flops / rate - overhead_ms(facts, format, d));
    dims product = row->kind == DW_EVIDENCE_WEIGHT ? (dims){d.n, d.k, d.m} : d;
    return ideal_ms(facts, format, product, 1) / (1e3 * flops / rate);
}

static double distance(dims d, const dw_evidence_row *row) {
    double a = log2(d.m / (double)row->m), b = log2(d.n / (double)row->n), c = log2(d.k / (double)row->k);
    return a * a + b * b + c * c;
}

/* The mean over the device's rows of this kind, near shapes counting most; 0 when there are none. */
static double efficiency(const dw_device_facts *facts, dw_evidence_kind kind, dw_format format, dims d) {
    double sum = 0, weights = 0;
    for (size_t i = 0; i < dw_evidence_table_size; i++) {
        const dw_evidence_row *row = &dw_evidence_table[i];
        if (strcmp(row->device, facts->name) != 0 || row->kind != kind || row->format != format) continue;
        double weight = 1 / (distance(d, row) + 0.01);
        sum += weight * reached(facts, format, row);
        weights += weight;
    }
    return weights > 0 ? sum / weights : 0;
}

static dw_products from_layers(const dw_device_facts *facts, dw_format format, dims d, double groups, double part) {
    return (dw_products){.forward = ideal_ms(facts, format, d, groups) / part,
                         .data = ideal_ms(facts, format, (dims){d.m, d.k, d.n}, groups) / part,
                         .weight = ideal_ms(facts, format, (dims){d.n, d.k, d.m}, groups) / part};
}

dw_products dw_products_ms(const dw_device_facts *facts, dw_format format, double tokens, double n, double k,
                           double groups) {
    dims d = {tokens, n, k}, back = {tokens, k, n};
    if (tokens <= 0 || n <= 0 || k <= 0) return (dw_products){0};
    double part = efficiency(facts, DW_EVIDENCE_LAYER, format, d);
    if (part > 0) return from_layers(facts, format, d, groups, part);
    /* Products measured one by one. A device without figures reaches what its relative reaches in BF16: promotion of
     * partial sums, which holds FP8 back on Hopper, is not needed on Blackwell. */
    dw_device_facts source = *facts;
    dw_format curve = format;
    if (efficiency(facts, DW_EVIDENCE_PRODUCT, format, d) == 0) {
        const char *relative = relative_of(facts);
        if (!relative || dw_device_facts_find(relative, &source) != DW_OK) return (dw_products){0};
        curve = DW_FORMAT_FULL;
    }
    double forward = efficiency(&source, DW_EVIDENCE_PRODUCT, curve, d);
    double data = efficiency(&source, DW_EVIDENCE_PRODUCT, curve, back);
    double weight = efficiency(&source, DW_EVIDENCE_WEIGHT, curve, d);
    if (weight == 0) weight = efficiency(&source, DW_EVIDENCE_PRODUCT, curve, (dims){n, k, tokens});
    return (dw_products){.forward = ideal_ms(facts, format, d, groups) / forward,
                         .data = ideal_ms(facts, format, back, groups) / data,
                         .weight = ideal_ms(facts, format, (dims){n, k, tokens}, groups) / weight};
}
