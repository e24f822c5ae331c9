/* The input is the text of a checkpoint's index. What is accepted names only plain files and survives being written. */
#include "fuzz.h"

#include "io/index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    dw_index index, again;
    if (dw_index_parse("input", (const char *)data, size, &index) != DW_OK) return 0;
    REQUIRE(index.entry_count > 0 && index.shard_count > 0 && index.shard_count <= index.entry_count);
    for (size_t i = 0; i < index.shard_count; i++)
        REQUIRE(!strchr(index.shards[i], '/') && index.shards[i][0] != '.' && index.shards[i][0] != '\0');
    dw_text text = {0};
    dw_index_format(&index, &text);
    REQUIRE(!text.failed);
    REQUIRE(dw_index_parse("again", text.bytes, text.length, &again) == DW_OK);
    REQUIRE(again.entry_count == index.entry_count && again.shard_count == index.shard_count);
    for (size_t i = 0; i < index.entry_count; i++) {
        const dw_index_entry *entry = &index.entries[i];
        REQUIRE(entry->shard < index.shard_count);
        REQUIRE(dw_index_find(&index, entry->tensor) == entry);
        REQUIRE(strcmp(again.entries[i].tensor, entry->tensor) == 0);
        REQUIRE(strcmp(again.shards[again.entries[i].shard], index.shards[entry->shard]) == 0);
    }
    dw_text_free(&text);
    dw_index_clear(&again);
    dw_index_clear(&index);
    return 0;
}
