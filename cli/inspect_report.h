/* What inspect found, as text and as JSON. */
#ifndef CLI_INSPECT_REPORT_H
#define CLI_INSPECT_REPORT_H

#include "checkpoint.h"
#include "io/record.h"

typedef struct cli_report_line {
    const dw_file_tensor *tensor;
    size_t shard;
    bool measurable;       /* a matrix that quantize could take */
    const char *kept;      /* why quantize leaves it alone by default; NULL when it does not */
    bool quantized, scale; /* FP8 data with scales; scales of such data */
    dw_block block;        /* of a quantized one */
    const dw_record_entry *origin;
    dw_quantize_stats stats;
} cli_report_line;

typedef struct cli_report {
    const cli_checkpoint *checkpoint;
    dw_quantize_spec spec; /* of the measurement */
    bool measured;
    dw_record *records; /* one for each shard; empty where there is none */
    cli_report_line *lines;
    size_t count;
} cli_report;

/* Adds the line of a tensor of shard `shard`; there is room. `recorded`: the shard carries a record. */
void cli_report_add(cli_report *report, size_t shard, const dw_file_tensor *tensor, bool recorded);

dw_status cli_report_text(const cli_report *report);
dw_status cli_report_json(const cli_report *report);

#endif
