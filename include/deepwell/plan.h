/* Planning: a model, described layer by layer, becomes decisions with reasons and predicted times and memory.
 *
 * Pure functions of their arguments: they look at no device, no file and no clock, so a plan for one machine can be
 * made on another. docs/plan.md explains the rules and the figures behind the predictions.
 *
 * All texts are UTF-8. A model and the options are views: whatever they point to must outlive the plan made from them.
 */
#ifndef DEEPWELL_PLAN_H
#define DEEPWELL_PLAN_H

#include "deepwell/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the model ---- */

typedef enum dw_layer_kind {
    DW_LAYER_LINEAR = 0,      /* y = x w^T (+ b); attention projections and the parts of an MLP are such, too */
    DW_LAYER_OUTPUT_HEAD = 1, /* a linear layer onto the vocabulary */
    DW_LAYER_ROUTER = 2,      /* a linear layer that chooses experts */
    DW_LAYER_EXPERTS = 3,     /* `matrices` linear layers, each for a part of the tokens */
    DW_LAYER_EMBEDDING = 4,   /* a table of out_features rows of in_features */
    DW_LAYER_NORM = 5,        /* of in_features */
    DW_LAYER_GATED_MLP = 6,   /* the activation between gate, up and down; in_features is the inner width */
    DW_LAYER_ATTENTION = 7,   /* softmax(q k^T) v, causal; in_features is the width of all queries together */
    DW_LAYER_LOSS = 8,        /* cross-entropy over in_features classes */
    DW_LAYER_ADAPTER = 9,     /* one of a pair of linear layers of low rank beside another */
    DW_LAYER_OTHER = 10,      /* anything else: left alone, and not in the predictions */
    DW_LAYER_KIND_COUNT
} dw_layer_kind;

/* "linear", "output_head", "router", "experts", "embedding", "norm", "gated_mlp", "attention", "loss", "adapter",
 * "other". */
DW_API const char *dw_layer_kind_name(dw_layer_kind kind);

/* One layer. A text that does not apply is NULL or "". */
typedef struct dw_layer {
    const char *name; /* its path in the model; "" for the model itself */
    const char *type; /* what people call it: "nn.Linear", "RMSNorm" */
    dw_layer_kind kind;
    const char *kind_reason; /* what showed the kind: "named lm_head" */
    const char *obstacle;    /* why its form cannot be converted */
    const char *fused;       /* why it runs fused with the quantization around it; such layers are only reported */
    const char *adapted;     /* why it is called in another form, in its own precision; only reported, too */
    const char *kernel;      /* the registered implementation that will run it; NULL for the library's own */
    const char *note;        /* what else a reader should know when it is converted */
    int64_t in_features, out_features; /* of one matrix; 0 where there is none */
    int64_t matrices;                  /* how many of them; 0 counts as 1 */
    double tokens_share;               /* the part of a pass's tokens that each matrix sees; 0 counts as 1 */
    double runs;                       /* how often a token passes through it in one pass; 0 counts as 1 */
    int64_t parameters;                /* all of the layer's */
    const char *dtype;                 /* of the weight: "float32", "float16", "bfloat16", or what else */
    bool frozen;                       /* needs no weight gradient */
    bool no_input_gradient;            /* nothing before it is trained */
    bool transposed;                   /* its weight is stored [in_features, out_features] */
    int64_t shares_input;              /* index of the first layer that reads the same input; -1: it is that one */
    int64_t input_from;                /* index of the layer whose output it reads; -1: not known */
} dw_layer;

typedef struct dw_model {
    const char *name; /* the model's type or family */
    const dw_layer *layers;
    size_t layer_count;
    const char *const *names; /* of all modules, candidates or not: for telling what a pattern could have meant */
    size_t name_count;
    int64_t parameters;
    const char *const *remarks; /* sentences about the description itself; they go with the summary */
    size_t remark_count;
} dw_model;

/* ---- what is wanted ---- */

/* What to do with the layers whose name matches. */
typedef struct dw_plan_wish {
    const char *pattern;
    const char *decision; /* the precision's name to convert, "keep" to leave alone */
} dw_plan_wish;

/* Times of a layer's size measured on the device, in place of predictions. For one matrix of [out, in] and `tokens`
 * rows, alone, forward and backward together. */
typedef struct dw_measurement {
    int64_t tokens, in_features, out_features;
    double full_ms, candidate_ms; /* in the layer's own precision, and converted */
} dw_measurement;

/* Zero everything, then set what differs. Texts: NULL stands for the first value named. */
typedef struct dw_plan_options {
    const char *precision;      /* "mxfp8", "fp8" (FP32 scales in blocks of 128), "bf16" (nothing is quantized) */
    const char *target;         /* whose numerics: "auto" (the device's), "cpu", "hopper", "blackwell" */
    const char *strategy;       /* "auto", "mxfp8_dense" (experts stay), "mxfp8_moe" (experts too), "bf16_fused" */
    const char *device;         /* where the model runs: "cpu", "hopper", "blackwell" */
    const char *gpu;            /* whose figures predict: a name of dw_device_facts_get; NULL: the target's usual one */
    int block_size;             /* 0: the target's own; 32; 128 */
    const dw_plan_wish *wishes; /* first match decides */
    size_t wish_count;
    const char *const *skip; /* patterns of names to leave alone */
    size_t skip_count;
    const char *const *only; /* patterns of names to convert, and none besides; none: all */
    size_t only_count;
    bool inference;      /* no gradients at all */
    int64_t tokens;      /* of one pass, all sequences together, at most 2^40; 0: 8192 */
    int64_t sequence;    /* tokens of one sequence, for attention; 0: 4096, or all tokens if fewer */
    int64_t cpu_threads; /* for predictions on the CPU; 0: as in the measurement that they rest on */
    const dw_measurement *measurements;
    size_t measurement_count;
} dw_plan_options;

/* Checks the options by themselves, without a model: INVALID_ARGUMENT for values that mean nothing and for those that
 * contradict each other. */
DW_API dw_status dw_plan_check_options(const dw_plan_options *options);

/* Whether `pattern` names this module or one that holds it: * any text (dots too), ? one character, [abc], [a-z],
 * [!a] as in a shell, case-sensitive. "blocks.0" matches "blocks.0.up". */
DW_API bool dw_plan_matches(const char *name, const char *pattern);

/* ---- devices and predictions ---- */

/* What is known of a device. Rates in bytes or operations per second. */
typedef struct dw_device_facts {
    const char *name;   /* "cpu", "h100", "h200", "b200", "gb200" */
    const char *title;  /* "NVIDIA H100 SXM 80 GB" */
    const char *family; /* "cpu", "hopper", "blackwell" */
    int multiprocessors;
    int64_t memory_bytes;
    double memory_rate;           /* what a device copy reaches, bytes read and written */
    double bf16_rate, fp8_rate;   /* dense, data sheet (on the CPU: the measured rate of FP32) */
    int64_t shared_bytes;         /* of one block */
    int tmem_lanes, tmem_columns; /* 0 where there is none */
    bool measured;                /* false: predictions rest on the data sheet and on assumptions */
    const char *source;           /* where the figures are from */
} dw_device_facts;

/* Number of devices known, one of them by index, or by name. INVALID_ARGUMENT for one that is not there. */
DW_API size_t dw_device_facts_count(void);
DW_API dw_status dw_device_facts_get(size_t index, dw_device_facts *facts);
DW_API dw_status dw_device_facts_find(const char *name, dw_device_facts *facts);

/* One measured figure behind the predictions: `what` in words ("BF16 products, forward and backward,
 * 8192 x 4096 x 4096"), the figure with its unit, and where it is from. INVALID_ARGUMENT for an index out of range. */
typedef struct dw_evidence {
    const char *device;
    char what[96];
    double value;
    const char *unit;
    const char *source;
} dw_evidence;
DW_API size_t dw_evidence_count(void);
DW_API dw_status dw_evidence_get(size_t index, dw_evidence *evidence);

/* What a layer costs in one precision. Times are of a pass over all tokens. alone_ms is what the layer takes by itself,
 * where the host's work on it may be longer than the device's. */
typedef struct dw_cost {
    bool known;        /* false: nothing is predicted */
    double forward_ms; /* time on the device, quantization and gaps between launches included */
    double backward_ms;
    double quantize_ms; /* the part of the two above that is quantization */
    double host_ms;     /* time on the host, both directions; hidden where the device is busy longer */
    double alone_ms;
    int64_t weight_bytes; /* weight, gradient and FP8 copies */
    int64_t saved_bytes;  /* kept from forward for backward */
} dw_cost;

/* ---- Blackwell's tiles ---- */

/* One way to tile a block-scaled product with tcgen05: a tile of rows x cols, `depth` elements of the reduction a
 * stage, `ctas` (1 or 2) sharing it, `accumulators` tiles in flight. Scale blocks are 1x32. */
typedef struct dw_mma_tile {
    int rows, cols, depth, stages, accumulators, ctas;
} dw_mma_tile;

/* What a tile needs of one multiprocessor. */
typedef struct dw_mma_tile_budget {
    int64_t shared_bytes; /* stages of both operands and their scales, the staged result, barriers */
    int accumulator_columns, scale_columns;
    int tmem_columns; /* allocated: a power of two */
    bool fits;
    char reason[160]; /* why not; "" when it fits */
} dw_mma_tile_budget;

DW_API size_t dw_mma_tile_candidate_count(void);
DW_API dw_status dw_mma_tile_candidate_get(size_t index, dw_mma_tile *tile);

/* What the tile needs on the device, and whether it fits in its shared memory and tensor memory (128 lanes x 512
 * columns, for accumulators and scales together). INVALID_ARGUMENT for a tile that is none (extents that tcgen05.mma
 * does not take), UNSUPPORTED for a device without tensor memory. */
DW_API dw_status dw_mma_tile_check(const dw_mma_tile *tile, const dw_device_facts *device, dw_mma_tile_budget *budget);

/* The candidate that fits and wastes least on a product of rows x cols. Errors as dw_mma_tile_check. */
DW_API dw_status dw_mma_tile_choose(int64_t rows, int64_t cols, const dw_device_facts *device, dw_mma_tile *tile);

/* ---- the plan ---- */

typedef enum dw_action {
    DW_ACTION_KEEP = 0,
    DW_ACTION_CONVERT = 1,
    DW_ACTION_FUSE = 2,
    DW_ACTION_ADAPT = 3,
    DW_ACTION_COUNT
} dw_action;

/* "keep", "convert", "fuse", "adapt". */
DW_API const char *dw_action_name(dw_action action);

/* What is written of one operand's FP8 form. */
typedef enum dw_forms { DW_FORMS_NONE = 0, DW_FORMS_ROW = 1, DW_FORMS_TRANSPOSED = 2, DW_FORMS_BOTH = 3 } dw_forms;

/* "", "row", "transposed", "both". */
DW_API const char *dw_forms_name(dw_forms forms);

/* What happens to a layer. Texts live as long as the plan. */
typedef struct dw_decision {
    const dw_layer *layer;
    dw_action action;
    const char *reason;       /* in words */
    const char *precision;    /* its own dtype unless converted */
    const char *block;        /* of input and gradient, along the reduction: "1x32", "1x128"; "" unless converted */
    const char *weight_block; /* "1x32", "128x128"; "" unless converted */
    const char *kernel;       /* "deepwell" or a registered one; "" when kept */
    dw_forms input_forms, gradient_forms, weight_forms; /* NONE unless converted by the library's own kernels */
    double flops_share; /* its part of the multiplications of all linear layers, heads, routers and experts */
    dw_cost full;       /* as it is */
    dw_cost candidate;  /* converted, or fused; known for every layer that could be */
    bool by_time;       /* kept for its time alone: a measurement could say otherwise */
    bool measured;      /* the two are from options.measurements */
    dw_mma_tile tile;   /* Blackwell: of the forward product; rows 0 where none */
} dw_decision;

typedef struct dw_plan_summary {
    const char *model;
    const char *precision, *target, *strategy, *device;
    const char *block, *weight_block; /* of converted layers */
    const char *element, *rounding;
    const dw_device_facts *facts; /* what the predictions are for */
    int64_t tokens, sequence;
    size_t converted, kept, fused, adapted;
    int64_t parameters, converted_parameters;
    double flops_share; /* of converted layers */
    /* Sums over the layers that are predicted, and the optimizer's step (AdamW, states of the weight's type). */
    double full_ms, planned_ms, optimizer_ms;
    double full_host_ms, planned_host_ms;
    /* At the peak of a training step: weights, FP8 copies, optimizer states, and activations or gradients. */
    int64_t full_bytes, planned_bytes;
    size_t unpredicted; /* layers that are in no sum */
} dw_plan_summary;

typedef struct dw_plan dw_plan;

/* Decides for every layer. Errors: INVALID_ARGUMENT for values that mean nothing, options that contradict each other,
 * patterns that match no layer or that contradict each other (the text names them); OUT_OF_MEMORY. Destroy the plan. */
DW_API dw_status dw_plan_create(const dw_model *model, const dw_plan_options *options, dw_plan **plan);
DW_API void dw_plan_destroy(dw_plan *plan);

DW_API void dw_plan_summarize(const dw_plan *plan, dw_plan_summary *summary);
DW_API size_t dw_plan_decision_count(const dw_plan *plan);
/* NULL for an index out of range. In the order of the model's layers. */
DW_API const dw_decision *dw_plan_decision(const dw_plan *plan, size_t index);

/* Sentences that go with the summary; NULL for an index out of range. */
DW_API size_t dw_plan_note_count(const dw_plan *plan);
DW_API const char *dw_plan_note(const dw_plan *plan, size_t index);

/* INVALID_ARGUMENT when the plan converts nothing, with the first reasons in the text. */
DW_API dw_status dw_plan_expect_conversion(const dw_plan *plan);

typedef enum dw_plan_format {
    DW_PLAN_TEXT = 0, /* an aligned table and the summary; lines end in \n */
    DW_PLAN_JSON = 1, /* docs/plan.md has the schema */
    DW_PLAN_HTML = 2, /* one page that needs no other file */
    DW_PLAN_FORMAT_COUNT
} dw_plan_format;

/* The plan in a format: terminated, to be freed with dw_plan_text_free. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY. */
DW_API dw_status dw_plan_explain(const dw_plan *plan, dw_plan_format format, char **text);
DW_API void dw_plan_text_free(char *text);

#ifdef __cplusplus
}
#endif
#endif
