#include "tiles.h"

#include <fcntl.h>
#include <stdlib.h>

/* Elements of one tile: the smallest high-precision type has two bytes. */
enum { TILE_ELEMENTS = CLI_TILE_BYTES / 2, EDGE = 128 };

static int64_t block_cols(const cli_item *item) {
    return item->spec.block == DW_BLOCK_1X32 ? 32 : 128;
}

static int64_t block_rows(const cli_item *item) {
    return item->spec.block == DW_BLOCK_128X128 ? 128 : 1;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

/* Whole rows while they fit, 128 of them where blocks are square; rows too wide for that are cut across. */
static void choose_extent(const cli_item *item, int64_t *rows, int64_t *cols) {
    int64_t elements = CLI_TILE_BYTES / (int64_t)dw_dtype_size(item->high), height = item->source->shape[0],
            width = item->source->shape[1];
    *cols = width;
    if (width <= elements / EDGE)
        *rows = elements / width / EDGE * EDGE;
    else if (block_rows(item) == EDGE) {
        *rows = EDGE;
        *cols = elements / (height < EDGE ? height : EDGE) / EDGE * EDGE;
    } else if (width <= elements)
        *rows = elements / width;
    else {
        *rows = 1;
        *cols = elements / EDGE * EDGE;
    }
}

static bool next_copy(cli_cutter *cutter, const cli_item *item, cli_tile *tile) {
    uint64_t size = item->source->end - item->source->begin, left = size - cutter->offset;
    if (left == 0) return false;
    *tile = (cli_tile){.item = item, .offset = cutter->offset, .bytes = left < CLI_TILE_BYTES ? left : CLI_TILE_BYTES};
    cutter->offset += tile->bytes;
    return true;
}

static bool next_matrix(cli_cutter *cutter, const cli_item *item, cli_tile *tile) {
    int64_t height = item->source->shape[0], width = item->source->shape[1];
    if (width == 0 || cutter->row >= height) return false;
    int64_t rows, cols;
    choose_extent(item, &rows, &cols);
    *tile = (cli_tile){.item = item, .row = cutter->row, .col = cutter->col};
    tile->rows = rows < height - cutter->row ? rows : height - cutter->row;
    tile->cols = cols < width - cutter->col ? cols : width - cutter->col;
    cutter->col += tile->cols;
    if (cutter->col == width) {
        cutter->col = 0;
        cutter->row += tile->rows;
    }
    return true;
}

bool cli_next_tile(cli_cutter *cutter, cli_tile *tile) {
    for (; cutter->at < cutter->count; cutter->at++) {
        const cli_item *item = &cutter->items[cutter->at];
        if (item->action == CLI_COPY ? next_copy(cutter, item, tile) : next_matrix(cutter, item, tile)) {
            tile->number = cutter->number++;
            return true;
        }
        cutter->offset = 0;
        cutter->row = cutter->col = 0;
    }
    return false;
}

uint64_t cli_tile_bytes(const cli_tile *tile) {
    if (tile->item->action == CLI_COPY) return tile->bytes;
    return (uint64_t)(tile->rows * tile->cols) * (dw_file_dtype_bits(tile->item->source->dtype) / 8);
}

uint64_t cli_item_bytes(const cli_item *item) {
    return item->source->end - item->source->begin;
}

bool cli_buffers_make(cli_buffers *buffers) {
    /* Aligned to pages: the copies in and out of the kernel and the vector loads are fastest there. */
    buffers->high = aligned_alloc(4096, CLI_TILE_BYTES);
    buffers->low = aligned_alloc(4096, TILE_ELEMENTS);
    buffers->scale = aligned_alloc(4096, TILE_ELEMENTS); /* a matrix of one column has a scale for each element */
    if (buffers->high && buffers->low && buffers->scale) return true;
    cli_buffers_free(buffers);
    return false;
}

void cli_buffers_free(cli_buffers *buffers) {
    free(buffers->high);
    free(buffers->low);
    free(buffers->scale);
    *buffers = (cli_buffers){0};
}

/* A rectangle of a row-major matrix in a file, and its dense copy in memory. */
typedef struct rectangle {
    uint64_t begin;                          /* of the matrix */
    uint64_t pitch;                          /* bytes of a whole row of the matrix */
    uint64_t row, rows, col_byte, row_bytes; /* of the rectangle */
} rectangle;

static uint64_t start_of(const rectangle *part) {
    return part->begin + part->row * part->pitch + part->col_byte;
}

static dw_status read_rectangle(const dw_reader *reader, const rectangle *part, uint8_t *bytes) {
    uint64_t at = start_of(part);
    if (part->row_bytes == part->pitch) return dw_reader_read(reader, at, bytes, part->rows * part->pitch);
    dw_status status = DW_OK;
    for (uint64_t i = 0; i < part->rows && status == DW_OK; i++, at += part->pitch, bytes += part->row_bytes)
        status = dw_reader_read(reader, at, bytes, part->row_bytes);
    return status;
}

static dw_status write_rectangle(dw_output *output, const rectangle *part, const uint8_t *bytes) {
    uint64_t at = start_of(part);
    if (part->row_bytes == part->pitch) return dw_output_write(output, at, bytes, part->rows * part->pitch);
    dw_status status = DW_OK;
    for (uint64_t i = 0; i < part->rows && status == DW_OK; i++, at += part->pitch, bytes += part->row_bytes)
        status = dw_output_write(output, at, bytes, part->row_bytes);
    return status;
}

static rectangle data_rectangle(const cli_tile *tile, uint64_t begin, size_t element_bytes) {
    return (rectangle){
        .begin = begin,
        .pitch = (uint64_t)tile->item->source->shape[1] * element_bytes,
        .row = (uint64_t)tile->row,
        .rows = (uint64_t)tile->rows,
        .col_byte = (uint64_t)tile->col * element_bytes,
        .row_bytes = (uint64_t)tile->cols * element_bytes,
    };
}

static rectangle scale_rectangle(const cli_tile *tile, uint64_t begin) {
    int64_t high = block_rows(tile->item), wide = block_cols(tile->item);
    return (rectangle){
        .begin = begin,
        .pitch = (uint64_t)ceil_div(tile->item->source->shape[1], wide),
        .row = (uint64_t)(tile->row / high),
        .rows = (uint64_t)ceil_div(tile->rows, high),
        .col_byte = (uint64_t)(tile->col / wide),
        .row_bytes = (uint64_t)ceil_div(tile->cols, wide),
    };
}

static dw_quantized quantized_view(const cli_tile *tile, const cli_buffers *buffers) {
    rectangle scale = scale_rectangle(tile, 0);
    return (dw_quantized){
        .data = dw_matrix(buffers->low, tile->item->spec.element, tile->rows, tile->cols),
        .scale = dw_matrix(buffers->scale, DW_E8M0, (int64_t)scale.rows, (int64_t)scale.row_bytes),
    };
}

static dw_status read_high(const cli_tile *tile, const cli_buffers *buffers, dw_tensor *view) {
    const cli_item *item = tile->item;
    rectangle data = data_rectangle(tile, item->source->begin, dw_dtype_size(item->high));
    *view = dw_matrix(buffers->high, item->high, tile->rows, tile->cols);
    return read_rectangle(item->reader, &data, buffers->high);
}

static dw_status quantize_tile(dw_context *context, const cli_tile *tile, const cli_buffers *buffers) {
    const cli_item *item = tile->item;
    dw_tensor source;
    dw_status status = read_high(tile, buffers, &source);
    dw_quantized result = quantized_view(tile, buffers);
    if (status == DW_OK) status = dw_quantize(context, &item->spec, &source, &result, NULL, NULL);
    rectangle data = data_rectangle(tile, item->target, 1), scale = scale_rectangle(tile, item->scale_target);
    if (status == DW_OK) status = write_rectangle(item->output, &data, buffers->low);
    if (status == DW_OK) status = write_rectangle(item->output, &scale, buffers->scale);
    return status;
}

static dw_status dequantize_tile(dw_context *context, const cli_tile *tile, const cli_buffers *buffers) {
    const cli_item *item = tile->item;
    rectangle data = data_rectangle(tile, item->source->begin, 1), scale = scale_rectangle(tile, item->scale->begin);
    dw_status status = read_rectangle(item->reader, &data, buffers->low);
    if (status == DW_OK) status = read_rectangle(item->reader, &scale, buffers->scale);
    dw_quantized source = quantized_view(tile, buffers);
    dw_tensor target = dw_matrix(buffers->high, item->high, tile->rows, tile->cols);
    if (status == DW_OK) status = dw_dequantize(context, &item->spec, &source, &target, NULL);
    data = data_rectangle(tile, item->target, dw_dtype_size(item->high));
    return status == DW_OK ? write_rectangle(item->output, &data, buffers->high) : status;
}

dw_status cli_tile_run(dw_context *context, const cli_tile *tile, const cli_buffers *buffers,
                       dw_quantize_stats *stats) {
    const cli_item *item = tile->item;
    dw_tensor source;
    dw_status status;
    switch (item->action) {
    case CLI_COPY:
        return dw_output_copy(item->output, item->target + tile->offset, item->reader->fd,
                              item->reader->data_offset + item->source->begin + tile->offset, tile->bytes,
                              buffers->high, CLI_TILE_BYTES);
    case CLI_QUANTIZE: return quantize_tile(context, tile, buffers);
    case CLI_DEQUANTIZE: return dequantize_tile(context, tile, buffers);
    case CLI_MEASURE:
        status = read_high(tile, buffers, &source);
        return status == DW_OK ? dw_quantize_measure(context, &item->spec, &source, stats) : status;
    }
    return DW_ERROR_INVALID_ARGUMENT;
}
