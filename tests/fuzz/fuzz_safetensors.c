/* The input is a safetensors file. Whatever is accepted must keep the reader's promises and survive being written. */
#include "fuzz.h"

#include "io/header.h"
#include "io/record.h"

static void check_promises(const dw_header *header, uint64_t data_bytes) {
    uint64_t at = 0;
    for (size_t i = 0; i < header->tensor_count; i++) {
        const dw_file_tensor *tensor = &header->tensors[i];
        uint64_t bytes;
        REQUIRE(tensor->begin == at && tensor->end >= at && tensor->end <= data_bytes);
        REQUIRE(dw_tensor_bytes(tensor->dtype, tensor->rank, tensor->shape, &bytes));
        REQUIRE(bytes == tensor->end - tensor->begin);
        REQUIRE(dw_header_find(header, tensor->name) == tensor);
        at = tensor->end;
    }
    REQUIRE(at == data_bytes);
}

static void check_round_trip(const dw_header *header) {
    char *bytes;
    size_t length;
    dw_header again;
    REQUIRE(dw_header_format("again", header, &bytes, &length) == DW_OK);
    REQUIRE(dw_header_parse("again", bytes + DW_HEADER_PREFIX, length - DW_HEADER_PREFIX, header->data_bytes, &again) ==
            DW_OK);
    REQUIRE(again.tensor_count == header->tensor_count && again.metadata_count == header->metadata_count);
    for (size_t i = 0; i < header->tensor_count; i++) {
        const dw_file_tensor *a = &header->tensors[i], *b = &again.tensors[i];
        REQUIRE(strcmp(a->name, b->name) == 0 && a->dtype == b->dtype && a->rank == b->rank && a->begin == b->begin &&
                a->end == b->end);
        REQUIRE(a->rank == 0 || memcmp(a->shape, b->shape, sizeof *a->shape * (size_t)a->rank) == 0);
    }
    for (size_t i = 0; i < header->metadata_count; i++)
        REQUIRE(strcmp(header->metadata[i].key, again.metadata[i].key) == 0 &&
                strcmp(header->metadata[i].value, again.metadata[i].value) == 0);
    dw_header_clear(&again);
    free(bytes);
}

static void check_record(const dw_header *header) {
    dw_record record;
    if (dw_record_read("input", header, &record) != DW_OK) return;
    for (size_t i = 0; i < record.count; i++) {
        const dw_file_tensor *data = dw_header_find(header, record.entries[i].name);
        dw_quantize_spec spec;
        REQUIRE(data && dw_record_infer(data, dw_record_scale_of(header, data->name), &spec));
        REQUIRE(dw_record_find(&record, data->name) == &record.entries[i]);
    }
    dw_record_clear(&record);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t prefix[DW_HEADER_PREFIX] = {0};
    memcpy(prefix, data, size < sizeof prefix ? size : sizeof prefix);
    uint64_t length;
    if (dw_header_frame("input", prefix, size, &length) != DW_OK) return 0;
    REQUIRE(length <= size - DW_HEADER_PREFIX);
    uint64_t data_bytes = size - DW_HEADER_PREFIX - length;
    dw_header header;
    if (dw_header_parse("input", (const char *)data + DW_HEADER_PREFIX, (size_t)length, data_bytes, &header) != DW_OK)
        return 0;
    check_promises(&header, data_bytes);
    check_round_trip(&header);
    check_record(&header);
    dw_header_clear(&header);
    return 0;
}
