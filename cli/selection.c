#include "selection.h"

#include <fnmatch.h>

/* Names as the common model families write them. Every step of an embedding, an output head or a router reaches all
 * tokens at once, and together they are few of the bytes; the rest of the weights average their rounding errors out. */
static const struct {
    const char *pattern, *reason;
} kept[] = {
    {"*embed*", "embedding"},
    {"*wte*", "embedding"},
    {"*wpe*", "embedding"},
    {"shared.weight", "embedding"},
    {"*.shared.weight", "embedding"},
    {"*lm_head*", "output head"},
    {"head.weight", "output head"},
    {"*.head.weight", "output head"},
    {"output.weight", "output head"},
    {"*.output.weight", "output head"},
    {"*classifier*", "output head"},
    {"score.weight", "output head"},
    {"*.score.weight", "output head"},
    {"*router*", "router"},
    {"*.gate.weight", "router"},
    {"*.gate.wg.weight", "router"},
    {"*norm*", "norm"},
};

const char *cli_kept_by_default(const char *name) {
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
        if (fnmatch(kept[i].pattern, name, 0) == 0) return kept[i].reason;
    return NULL;
}

bool cli_is_matrix(const dw_file_tensor *tensor) {
    return tensor->rank == 2 && dw_file_dtype_is_source(tensor->dtype);
}
