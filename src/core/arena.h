/* Many small allocations freed at once: names, shapes and values of a header live here. */
#ifndef DW_CORE_ARENA_H
#define DW_CORE_ARENA_H

#include <stddef.h>

typedef struct dw_arena {
    struct dw_arena_block *blocks;
} dw_arena;

/* `size` bytes aligned for any type, not cleared; NULL when memory is out. */
void *dw_arena_take(dw_arena *arena, size_t size);

/* A terminated copy of `length` bytes; NULL when memory is out. */
char *dw_arena_copy(dw_arena *arena, const char *text, size_t length);

/* Frees everything taken; the arena may be used again. */
void dw_arena_clear(dw_arena *arena);

#endif
