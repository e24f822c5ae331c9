#include "core/arena.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

struct dw_arena_block {
    struct dw_arena_block *next;
    size_t used, size;
    alignas(max_align_t) char bytes[];
};

enum { BLOCK_BYTES = 16 << 10 };

void *dw_arena_take(dw_arena *arena, size_t size) {
    if (size > (size_t)1 << 40) return NULL;
    size = (size + alignof(max_align_t) - 1) & ~(alignof(max_align_t) - 1);
    struct dw_arena_block *block = arena->blocks;
    if (!block || block->size - block->used < size) {
        size_t room = size > BLOCK_BYTES ? size : BLOCK_BYTES;
        block = malloc(sizeof *block + room);
        if (!block) return NULL;
        *block = (struct dw_arena_block){.next = arena->blocks, .size = room};
        arena->blocks = block;
    }
    void *taken = block->bytes + block->used;
    block->used += size;
    return taken;
}

char *dw_arena_copy(dw_arena *arena, const char *text, size_t length) {
    char *copy = dw_arena_take(arena, length + 1);
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

void dw_arena_clear(dw_arena *arena) {
    while (arena->blocks) {
        struct dw_arena_block *next = arena->blocks->next;
        free(arena->blocks);
        arena->blocks = next;
    }
}
