/* Work on tensors in pieces of a few megabytes, so that memory does not depend on how large they are.
 *
 * A matrix is cut into tiles whose edges are multiples of the block, so every tile is quantized by itself. A tile is
 * read, converted and written by one thread while its bytes are in that processor's cache; threads overlap reading,
 * computing and writing by being at different tiles. */
#ifndef CLI_TILES_H
#define CLI_TILES_H

#include "io/output.h"
#include "io/reader.h"

#include "cli.h"

typedef enum cli_action {
    CLI_COPY,       /* source -> target unchanged */
    CLI_QUANTIZE,   /* source (F32, F16, BF16) -> target and scale_target */
    CLI_DEQUANTIZE, /* source (FP8) and scale -> target */
    CLI_MEASURE     /* source -> stats */
} cli_action;

typedef struct cli_item {
    cli_action action;
    const dw_reader *reader;
    const dw_file_tensor *source, *scale;
    dw_output *output;
    uint64_t target, scale_target; /* positions in the output */
    dw_dtype high;                 /* the dtype on the high-precision side */
    dw_quantize_spec spec;         /* of row layout */
    dw_quantize_stats *stats;
} cli_item;

typedef struct cli_tile {
    const cli_item *item;
    uint64_t number;              /* counts over all items */
    int64_t row, rows, col, cols; /* of a matrix */
    uint64_t offset, bytes;       /* of a copy, in the source */
} cli_tile;

/* Bytes of the high-precision side of a tile at most, and of a copy. */
enum { CLI_TILE_BYTES = 4 << 20 };

/* Cuts a list of items into tiles, in order. Start from {items, count}. */
typedef struct cli_cutter {
    const cli_item *items;
    size_t count, at;
    uint64_t number, offset;
    int64_t row, col;
} cli_cutter;

bool cli_next_tile(cli_cutter *cutter, cli_tile *tile);

/* Input bytes of a tile and of an item, for the progress bar. */
uint64_t cli_tile_bytes(const cli_tile *tile);
uint64_t cli_item_bytes(const cli_item *item);

/* One thread's memory: a few megabytes. */
typedef struct cli_buffers {
    uint8_t *high, *low, *scale;
} cli_buffers;

bool cli_buffers_make(cli_buffers *buffers);
void cli_buffers_free(cli_buffers *buffers);

/* Does a tile. `context` runs on one thread. For CLI_MEASURE the result goes to `stats`, which the caller zeroed. */
dw_status cli_tile_run(dw_context *context, const cli_tile *tile, const cli_buffers *buffers, dw_quantize_stats *stats);

#endif
