/* What deepwell did to a checkpoint, kept in the file's metadata so that it can be shown and undone:
 *   deepwell.version        the version that wrote it, e.g. "0.1.0"
 *   deepwell.format         "mxfp8"
 *   deepwell.block          "1x32", "1x128" or "128x128"
 *   deepwell.rounding       "rceil" or "floor"
 *   deepwell.layout         "row"
 *   deepwell.source_dtypes  a JSON object: {"NAME": "BF16", ...} for every tensor that was quantized
 * The scales of NAME are the tensor NAME_scale. */
#ifndef DW_IO_RECORD_H
#define DW_IO_RECORD_H

#include "io/header.h"

#include "deepwell/quantize.h"

#define DW_SCALE_SUFFIX "_scale"

typedef struct dw_record_entry {
    const char *name;
    dw_file_dtype source;
} dw_record_entry;

typedef struct dw_record {
    dw_quantize_spec spec;
    dw_record_entry *entries; /* sorted by name */
    size_t count, room;
    dw_arena arena;
} dw_record;

/* True when the header carries a record, readable or not. */
bool dw_record_present(const dw_header *header);

/* Reads the record of a header and checks that every tensor it names is there as F8_E4M3 with scales of the right
 * shape. NOT_FOUND when there is none, CORRUPT when it does not fit the file, UNSUPPORTED for a format this version
 * lacks. */
dw_status dw_record_read(const char *what, const dw_header *header, dw_record *record);

/* NULL when the record does not name it. */
const dw_record_entry *dw_record_find(const dw_record *record, const char *name);

/* Building one: set `spec`, add the tensors, then write the record as metadata of a header. */
dw_status dw_record_add(dw_record *record, const char *name, dw_file_dtype source);
dw_status dw_record_write(const dw_record *record, dw_header *header);

/* True for the metadata keys of a record. */
bool dw_record_owns_key(const char *key);

/* The quantized pair `data` and `scale` (may be NULL) as a spec, judged by dtypes and shapes alone. Where several
 * blocks fit, they mean the same. False when the two are no such pair. */
bool dw_record_infer(const dw_file_tensor *data, const dw_file_tensor *scale, dw_quantize_spec *spec);

/* The tensor NAME_scale of NAME; NULL when there is none. OUT_OF_MEMORY is reported as NULL too. */
const dw_file_tensor *dw_record_scale_of(const dw_header *header, const char *name);

void dw_record_clear(dw_record *record);

#endif
