#include "cuda/host/gemm_tuning.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/host/cache_file.h"

enum { MOST_DEVICES = 64, SLOTS = 2048, MOST_SHAPES = SLOTS * 3 / 4, MOST_BAND = 4096 };

/* ---- in the process: a hash table for each device that is only added to, so that finding takes no lock ---- */

typedef struct slot {
    atomic_uint choice; /* 0: free; else row + 1, and the band above 16 bits. Set last, and the key never changes. */
    dw_gemm_sm90_shape key;
} slot;

typedef struct table {
    unsigned mask;
    int used;
    slot *slots;
} table;

/* Of a device for which nothing was measured. */
static slot free_slot;
static table nothing = {.slots = &free_slot};

static table *_Atomic tables[MOST_DEVICES]; /* NULL: the file was not looked at yet */
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

static uint64_t mixed(uint64_t state, int64_t value) {
    state = (state ^ (uint64_t)value) * 0x9E3779B97F4A7C15u;
    return state ^ state >> 32;
}

static uint64_t hash_of(const dw_gemm_sm90_shape *s) {
    uint64_t formats = (uint64_t)s->grouping << 3 | s->scale_f32 << 2 | s->b_vector << 1 | s->out_f32;
    return mixed(mixed(mixed(mixed(formats + 1, s->m), s->n), s->k), s->groups);
}

static bool same_shape(const dw_gemm_sm90_shape *a, const dw_gemm_sm90_shape *b) {
    return a->m == b->m && a->n == b->n && a->k == b->k && a->groups == b->groups && a->grouping == b->grouping &&
           a->scale_f32 == b->scale_f32 && a->b_vector == b->b_vector && a->out_f32 == b->out_f32;
}

/* The slot that has the shape, or else the free one where it belongs; there is always one. `*choice`: what it holds. */
static slot *look_up(const table *t, const dw_gemm_sm90_shape *shape, unsigned *choice) {
    for (uint64_t at = hash_of(shape);; at++) {
        slot *s = &t->slots[at & t->mask];
        *choice = atomic_load_explicit(&s->choice, memory_order_acquire);
        if (*choice == 0 || same_shape(&s->key, shape)) return s;
    }
}

static table *new_table(void) {
    table *t = malloc(sizeof *t);
    slot *slots = t ? calloc(SLOTS, sizeof *slots) : NULL;
    if (!slots) {
        free(t);
        return NULL;
    }
    *t = (table){.mask = SLOTS - 1, .slots = slots};
    return t;
}

/* With the lock held. False when the table is full. */
static bool put(table *t, const dw_gemm_sm90_shape *shape, const dw_gemm_sm90_choice *choice) {
    unsigned before, now = (unsigned)choice->row + 1 + ((unsigned)choice->band << 16);
    slot *s = look_up(t, shape, &before);
    if (before == 0) {
        if (t->used == MOST_SHAPES) return false;
        s->key = *shape;
        t->used++;
    }
    atomic_store_explicit(&s->choice, now, memory_order_release);
    return true;
}

/* ---- in the file: a line for each shape ---- */

typedef struct line {
    dw_gemm_sm90_shape shape;
    dw_gemm_sm90_choice choice;
} line;

static int row_named(const char *name) {
    for (size_t i = 0; i < dw_gemm_sm90_count(); i++)
        if (strcmp(dw_gemm_sm90_get(i)->name, name) == 0) return (int)i;
    return -1;
}

/* The kernel's name tells the formats. */
static bool parse(const char *text, line *l) {
    char name[128];
    int64_t *m = &l->shape.m, *n = &l->shape.n, *k = &l->shape.k, *groups = &l->shape.groups;
    *l = (line){0};
    if (sscanf(text, "%" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %127s %d", m, n, k, groups, name,
               &l->choice.band) != 6)
        return false;
    l->choice.row = row_named(name);
    if (l->choice.row < 0 || l->choice.band < 1 || l->choice.band > MOST_BAND) return false;
    const dw_gemm_sm90_row *row = dw_gemm_sm90_get((size_t)l->choice.row);
    l->shape.grouping = row->grouping;
    l->shape.scale_f32 = row->scale_f32;
    l->shape.b_vector = row->b_vector;
    l->shape.out_f32 = row->out_f32;
    return true;
}

static bool replaces(const char *old, const char *added) {
    line a, b;
    return !parse(old, &a) || (parse(added, &b) && same_shape(&a.shape, &b.shape));
}

/* What DEEPWELL_TUNING says: whether to tune at all, and the folder, NULL for the usual one. */
static dw_status setting(bool *on, const char **folder) {
    const char *text = getenv("DEEPWELL_TUNING");
    *on = !text || strcmp(text, "off") != 0;
    *folder = text && text[0] == '/' ? text : NULL;
    if (*on && text && *text && !*folder)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "DEEPWELL_TUNING is '%s'; off, an absolute path of a folder or nothing is expected", text);
    return DW_OK;
}

dw_status dw_gemm_tuning_allowed(void) {
    bool on;
    const char *folder;
    DW_TRY(setting(&on, &folder));
    return on ? DW_OK : dw_fail(DW_ERROR_UNSUPPORTED, "gemm: DEEPWELL_TUNING is off, so nothing is tuned");
}

static bool file_of(int device, const char *folder, dw_cache_file *file) {
    const dw_cache_kind kind = {
        .name = "gemm", .title = "matrix kernels that were measured to be the fastest", .format = 1, .folder = folder};
    return dw_cache_file_of(device, &kind, file);
}

static table *read_file(int device, char *warning, size_t capacity) {
    bool on, foreign;
    const char *folder;
    dw_cache_file file;
    if (setting(&on, &folder) != DW_OK) {
        snprintf(warning, capacity, "%s; choices of matrix kernels that were measured are not used", dw_last_error());
        return &nothing;
    }
    if (!on || !file_of(device, folder, &file)) return &nothing;
    char *lines = dw_cache_file_read(&file, &foreign);
    if (foreign)
        snprintf(warning, capacity,
                 "ignored %s: it is damaged, or was measured with another driver; `deepwell tune` replaces it",
                 file.path);
    table *t = lines ? new_table() : NULL;
    line l;
    for (const char *at = lines; t && *at; at = strchr(at, '\n') + 1)
        if (parse(at, &l)) put(t, &l.shape, &l.choice);
    free(lines);
    return t ? t : &nothing;
}

static table *first_use(int device) {
    char warning[4608] = "", last_error[1024];
    snprintf(last_error, sizeof last_error, "%s", dw_last_error());
    pthread_mutex_lock(&changing);
    table *t = atomic_load_explicit(&tables[device], memory_order_relaxed);
    if (!t) {
        t = read_file(device, warning, sizeof warning);
        atomic_store_explicit(&tables[device], t, memory_order_release);
    }
    pthread_mutex_unlock(&changing);
    dw_fail(DW_OK, "%s", last_error); /* what failed here is not the caller's failure */
    if (*warning) dw_warn("%s", warning);
    return t;
}

static table *table_of(int device) {
    table *t = atomic_load_explicit(&tables[device], memory_order_acquire);
    return t ? t : first_use(device);
}

bool dw_gemm_tuning_find(int device, const dw_gemm_sm90_shape *shape, dw_gemm_sm90_choice *choice) {
    unsigned found;
    if (device < 0 || device >= MOST_DEVICES) return false;
    look_up(table_of(device), shape, &found);
    if (found == 0) return false;
    *choice = (dw_gemm_sm90_choice){.row = (int)(found & 0xFFFF) - 1, .band = (int)(found >> 16)};
    return true;
}

/* In the process. */
static bool keep(int device, const dw_gemm_sm90_shape *shape, const dw_gemm_sm90_choice *choice) {
    table_of(device);
    pthread_mutex_lock(&changing);
    table *t = atomic_load_explicit(&tables[device], memory_order_relaxed);
    if (t == &nothing && (t = new_table()) == NULL) t = &nothing;
    bool kept = t != &nothing && put(t, shape, choice);
    atomic_store_explicit(&tables[device], t, memory_order_release);
    pthread_mutex_unlock(&changing);
    return kept;
}

dw_status dw_gemm_tuning_keep(int device, const dw_gemm_sm90_shape *shape, const dw_gemm_sm90_choice *choice,
                              double seconds, double predicted_seconds, bool *remembered) {
    bool on;
    const char *folder;
    DW_TRY(setting(&on, &folder));
    if (device < 0 || device >= MOST_DEVICES || !keep(device, shape, choice))
        return dw_fail(DW_ERROR_OUT_OF_MEMORY, "gemm: no more than %d shapes of %d GPUs can be tuned", MOST_SHAPES,
                       MOST_DEVICES);
    char text[320];
    snprintf(text, sizeof text,
             "%" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %s %d: %.2f us, predicted choice %.2f us", shape->m,
             shape->n, shape->k, shape->groups, dw_gemm_sm90_get((size_t)choice->row)->name, choice->band,
             1e6 * seconds, 1e6 * predicted_seconds);
    dw_cache_file file;
    bool has_file = file_of(device, folder, &file);
    *remembered = has_file && dw_cache_file_add(&file, text, replaces);
    if (!*remembered)
        dw_warn("the matrix kernel measured to be the fastest is known to this process only: %s%s",
                has_file ? "cannot write " : "there is no home for a file", has_file ? file.path : "");
    return DW_OK;
}

void dw_gemm_tuning_forget(void) {
    for (int i = 0; i < MOST_DEVICES; i++) {
        table *t = atomic_exchange(&tables[i], NULL);
        if (!t || t == &nothing) continue;
        free(t->slots);
        free(t);
    }
}
