/* The header of a safetensors file: what tensors it holds, where, and free-form metadata.
 *
 * Layout of a file: 8 bytes, the header's length, little endian; the header, a JSON object {"NAME": {"dtype", "shape",
 * "data_offsets": [begin, end]}, ..., "__metadata__": {"key": "value"}}, padded with spaces; the data. Offsets count
 * from the start of the data. The tensors must cover the data exactly: no hole, no overlap, no byte left over. */
#ifndef DW_IO_HEADER_H
#define DW_IO_HEADER_H

#include "core/arena.h"
#include "io/file_dtype.h"

#define DW_HEADER_TEXT_MAX ((uint64_t)100000000)
#define DW_HEADER_PREFIX 8
#define DW_METADATA_NAME "__metadata__"

typedef struct dw_file_tensor {
    const char *name;
    dw_file_dtype dtype;
    int rank;
    const int64_t *shape;
    uint64_t begin, end; /* bytes in the data */
} dw_file_tensor;

typedef struct dw_metadata_entry {
    const char *key, *value;
} dw_metadata_entry;

typedef struct dw_header {
    dw_file_tensor *tensors; /* in the order of their data */
    size_t tensor_count, tensor_room;
    const dw_file_tensor **by_name;
    dw_metadata_entry *metadata;
    size_t metadata_count, metadata_room;
    uint64_t data_bytes;
    dw_arena arena;
} dw_header;

/* Reads the length in front of a file of `file_bytes` bytes. CORRUPT when the file is too short for it or it is larger
 * than the format allows; `what` names the file in errors. */
dw_status dw_header_frame(const char *what, const uint8_t prefix[DW_HEADER_PREFIX], uint64_t file_bytes,
                          uint64_t *text_bytes);

/* Parses a header whose data has `data_bytes` bytes. Everything is checked: afterwards every tensor's range lies in the
 * data and its shape fits its range. Memory stays within a small multiple of `length`. */
dw_status dw_header_parse(const char *what, const char *text, size_t length, uint64_t data_bytes, dw_header *header);

/* Building one: start from {0}, add, then finish. A tensor's range follows the one before it. Names and values are
 * copied. finish sorts names and reports a duplicate as EXISTS. INVALID_ARGUMENT when a shape's size is not a whole
 * number of bytes or overflows. */
dw_status dw_header_add_tensor(dw_header *header, const char *name, dw_file_dtype dtype, int rank,
                               const int64_t *shape);
/* The same with the range given, in any order; whoever calls it has checked the range. */
dw_status dw_header_place_tensor(dw_header *header, const dw_file_tensor *tensor);
dw_status dw_header_add_metadata(dw_header *header, const char *key, const char *value);
dw_status dw_header_finish(const char *what, dw_header *header);

/* The bytes that stand before the data: prefix and padded text (malloc'ed). The data starts at a multiple of 8. */
dw_status dw_header_format(const char *what, const dw_header *header, char **bytes, size_t *length);

/* NULL when there is none. The header must be parsed or finished. */
const dw_file_tensor *dw_header_find(const dw_header *header, const char *name);
const char *dw_header_metadata(const dw_header *header, const char *key);

/* Bytes of a tensor; false when they overflow, an extent is negative, or they are not whole. */
bool dw_tensor_bytes(dw_file_dtype dtype, int rank, const int64_t *shape, uint64_t *bytes);

void dw_header_clear(dw_header *header);

#endif
