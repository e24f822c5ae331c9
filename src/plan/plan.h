/* What the files of src/plan share: the options as read, costs, the plan's insides. */
#ifndef DW_PLAN_PLAN_H
#define DW_PLAN_PLAN_H

#include "core/arena.h"
#include "core/status.h"
#include "core/text.h"
#include "deepwell/plan.h"

typedef enum dw_precision { DW_PRECISION_MXFP8, DW_PRECISION_FP8, DW_PRECISION_BF16, DW_PRECISION_COUNT } dw_precision;
typedef enum dw_family { DW_FAMILY_CPU, DW_FAMILY_HOPPER, DW_FAMILY_BLACKWELL, DW_FAMILY_COUNT } dw_family;
typedef enum dw_strategy {
    DW_STRATEGY_AUTO,
    DW_STRATEGY_DENSE,
    DW_STRATEGY_MOE,
    DW_STRATEGY_FUSED,
    DW_STRATEGY_COUNT
} dw_strategy;

/* The options, read and checked. */
typedef struct dw_settings {
    const dw_plan_options *options;
    dw_precision precision;
    dw_family target, device;
    dw_strategy strategy;
    dw_block block, weight_block;
    dw_device_facts facts;
    int64_t tokens, sequence;
    bool inference;
    double cpu_scale; /* threads over those of the measurement */
} dw_settings;

const char *dw_precision_name(dw_precision precision);
const char *dw_family_name(dw_family family);
const char *dw_strategy_name(dw_strategy strategy);

/* Reads and checks the options by themselves. */
dw_status dw_settings_read(const dw_plan_options *options, dw_settings *settings);

/* Checks every pattern against the model. */
dw_status dw_patterns_check(const dw_model *model, const dw_plan_options *options);

/* The first of the patterns that matches; NULL when none does. */
const char *dw_first_match(const char *const *patterns, size_t count, const char *name);
/* The same for wishes. */
const dw_plan_wish *dw_first_wish(const dw_plan_options *options, const char *name);

/* The largest extent and number of tokens that predictions are made for: far beyond any model, and far from overflow.
 */
#define DW_PLAN_LARGEST ((int64_t)1 << 40)

/* ---- layers ---- */

static inline const char *dw_or_empty(const char *text) {
    return text ? text : "";
}
static inline int64_t dw_layer_matrices(const dw_layer *layer) {
    return layer->matrices > 0 ? layer->matrices : 1;
}
static inline double dw_layer_runs(const dw_layer *layer) {
    return layer->runs > 0 ? layer->runs : 1;
}
/* Rows of the input of one matrix in one pass. */
double dw_layer_rows(const dw_layer *layer, const dw_settings *settings);
/* Linear layers, heads, routers and experts. */
bool dw_layer_is_product(const dw_layer *layer);
bool dw_layer_is_candidate(const dw_layer *layer); /* there is something to decide about it */
bool dw_layer_is_own(const dw_layer *layer);       /* no registered kernel runs it */
double dw_layer_weights(const dw_layer *layer);
double dw_layer_work(const dw_layer *layer);      /* multiplications for one token of a pass */
bool dw_layer_is_reported(const dw_layer *layer); /* fused or adapted: decided by whoever described it */
/* Bytes of an element of this dtype; 4 for one that is not known. */
int dw_dtype_bytes(const char *dtype);
bool dw_dtype_converts(const char *dtype);

/* ---- evidence ---- */

typedef enum dw_evidence_kind {
    DW_EVIDENCE_LAYER,     /* forward and backward of a layer, all included; M, N, K; TFLOP/s */
    DW_EVIDENCE_PRODUCT,   /* a product of rows by rows: forward, data gradient */
    DW_EVIDENCE_WEIGHT,    /* a weight gradient's product: dimensions N, K, M of the layer */
    DW_EVIDENCE_HOST,      /* a layer so small that the host's time is all: ms forward and backward */
    DW_EVIDENCE_RATE,      /* TB/s, read and written */
    DW_EVIDENCE_ATTENTION, /* TFLOP/s, causal, forward and backward */
} dw_evidence_kind;

typedef enum dw_format { DW_FORMAT_FULL, DW_FORMAT_QUANTIZED } dw_format;

typedef enum dw_rate {
    DW_RATE_NONE,
    DW_RATE_COPY,
    DW_RATE_QUANTIZE_ONE, /* one orientation */
    DW_RATE_QUANTIZE_BOTH,
    DW_RATE_DECODE,
    DW_RATE_NORM,
    DW_RATE_NORM_BACKWARD,
    DW_RATE_GATED,
    DW_RATE_GATED_BACKWARD,
    DW_RATE_LOSS,
    DW_RATE_LOSS_BACKWARD,
} dw_rate;

typedef struct dw_evidence_row {
    const char *device;
    dw_evidence_kind kind;
    dw_format format;
    dw_rate rate;
    int64_t m, n, k;
    double value;
    const char *source;
} dw_evidence_row;

extern const dw_evidence_row dw_evidence_table[];
extern const size_t dw_evidence_table_size;

/* Bytes per second of an operation on the device. */
double dw_rate_of(const dw_device_facts *facts, dw_rate rate);
/* The one row of this kind and format; the value is borrowed from the device's nearest relative where it has none. */
double dw_evidence_value(const dw_device_facts *facts, dw_evidence_kind kind, dw_format format);

/* ms of the products of a layer of [tokens, n, k]: forward, data gradient, weight gradient. groups: that many of them
 * in one launch. */
typedef struct dw_products {
    double forward, data, weight;
} dw_products;
dw_products dw_products_ms(const dw_device_facts *facts, dw_format format, double tokens, double n, double k,
                           double groups);

/* ---- costs and decisions ---- */

/* What becomes of the layers, as far as costs depend on each other. */
typedef struct dw_neighbours {
    bool input_quantized; /* by a layer before it that shares the input */
    bool input_fused;     /* whoever makes the input writes its FP8 form */
} dw_neighbours;

void dw_choose_forms(const dw_layer *layer, const dw_settings *settings, dw_forms *input, dw_forms *gradient,
                     dw_forms *weight);
dw_cost dw_cost_full(const dw_layer *layer, const dw_settings *settings);
/* Converted if it is a product, fused if it is not. */
dw_cost dw_cost_candidate(const dw_layer *layer, const dw_settings *settings, dw_neighbours neighbours);

/* What the layer costs as decided. */
static inline const dw_cost *dw_planned_cost(const dw_decision *d) {
    return d->action != DW_ACTION_KEEP && d->candidate.known ? &d->candidate : &d->full;
}

/* Whether the layer is expected to be faster converted. */
static inline bool dw_cost_wins(const dw_cost *full, const dw_cost *candidate) {
    return candidate->alone_ms < full->alone_ms;
}

/* Layers of one shape cost the same; a model has few shapes. */
typedef struct dw_sample {
    const dw_layer *layer;
    dw_neighbours neighbours;
    dw_cost full, candidate;
    const char *crossover; /* where it would win; NULL until asked for */
} dw_sample;
enum { DW_PLAN_SAMPLES = 64 };

struct dw_plan {
    const dw_model *model;
    dw_settings settings;
    dw_decision *decisions; /* one for each layer */
    const char *notes[16];
    size_t note_count;
    dw_sample samples[DW_PLAN_SAMPLES];
    size_t sample_count; /* made so far; the newest replace the oldest */
    dw_arena arena;
};

/* Fills the decision of layer `index`; those before it are made. */
dw_status dw_decide(dw_plan *plan, size_t index, double total_work);

/* A formatted text in the plan's arena; NULL when memory is out. */
const char *dw_plan_text(dw_plan *plan, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "12,582,912", in `buffer`. */
const char *dw_grouped_digits(int64_t number, char buffer[32]);

/* ---- telling ---- */

/* The sentences under the table, each ended by \n. */
void dw_explain_summary(const dw_plan *plan, dw_text *text);
void dw_explain_text(const dw_plan *plan, dw_text *text);
void dw_explain_json(const dw_plan *plan, dw_text *text);
void dw_explain_html(const dw_plan *plan, dw_text *text);

/* The cells of a decision's line, for text and HTML. */
enum { DW_PLAN_COLUMNS = 10 };
extern const char *const dw_plan_headings[DW_PLAN_COLUMNS];
extern const bool dw_plan_numeric[DW_PLAN_COLUMNS];
void dw_explain_cell(const dw_decision *decision, int column, dw_text *text);

#endif
