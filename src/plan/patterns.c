/* Patterns against a model: one that matches nothing is a mistake, and so are two that want opposite things. */
#include <stdlib.h>
#include <string.h>

#include "plan/plan.h"

const char *dw_first_match(const char *const *patterns, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (dw_plan_matches(name, patterns[i])) return patterns[i];
    return NULL;
}

const dw_plan_wish *dw_first_wish(const dw_plan_options *options, const char *name) {
    for (size_t i = 0; i < options->wish_count; i++)
        if (dw_plan_matches(name, options->wishes[i].pattern)) return &options->wishes[i];
    return NULL;
}

enum { LONGEST_COMPARED = 96 };

/* Letters to insert, remove or exchange between two texts. */
static int edit_distance(const char *a, const char *b) {
    int rows[2][LONGEST_COMPARED + 1];
    int columns = (int)strlen(b);
    for (int j = 0; j <= columns; j++)
        rows[0][j] = j;
    int turn = 0;
    for (int i = 0; a[i]; i++, turn ^= 1) {
        int *above = rows[turn], *row = rows[turn ^ 1];
        row[0] = i + 1;
        for (int j = 0; j < columns; j++) {
            int exchanged = above[j] + (a[i] != b[j]);
            int other = (above[j + 1] < row[j] ? above[j + 1] : row[j]) + 1;
            row[j + 1] = exchanged < other ? exchanged : other;
        }
    }
    return rows[turn][columns];
}

/* The module name nearest to what was typed, when at least half of it fits; NULL otherwise. */
static const char *closest(const dw_model *model, const char *pattern) {
    const char *best = NULL;
    int least = 0, typed = (int)strlen(pattern);
    if (typed > LONGEST_COMPARED) return NULL;
    for (size_t i = 0; i < model->name_count; i++) {
        const char *name = model->names[i];
        int length = (int)strlen(name);
        if (length == 0 || length > LONGEST_COMPARED) continue;
        int distance = edit_distance(pattern, name);
        if (2 * distance > (typed > length ? typed : length) || (best && distance >= least)) continue;
        best = name;
        least = distance;
    }
    return best;
}

static dw_status no_match(const dw_model *model, const char *argument, const char *pattern) {
    for (size_t i = 0; i < model->name_count; i++)
        if (*model->names[i] && dw_plan_matches(model->names[i], pattern))
            return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                           "%s pattern '%.200s' matches modules of %.100s, but none that could be converted", argument,
                           pattern, model->name);
    const char *near = closest(model, pattern);
    if (near)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "%s pattern '%.200s' matches no module of %.100s; did you mean '%s'?",
                       argument, pattern, model->name, near);
    return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                   "%s pattern '%.200s' matches no module of %.100s; their names are like '%.200s'", argument, pattern,
                   model->name, model->layer_count ? dw_or_empty(model->layers[0].name) : "");
}

static dw_status expect_match(const dw_model *model, const char *argument, const char *pattern) {
    for (size_t i = 0; i < model->layer_count; i++)
        if (dw_layer_is_candidate(&model->layers[i]) && dw_plan_matches(dw_or_empty(model->layers[i].name), pattern))
            return DW_OK;
    return no_match(model, argument, pattern);
}

static dw_status expect_agreement(const dw_plan_options *options, const char *name) {
    const char *skipped = dw_first_match(options->skip, options->skip_count, name);
    const char *wanted = dw_first_match(options->only, options->only_count, name);
    const dw_plan_wish *wish = dw_first_wish(options, name);
    bool keep = wish && strcmp(wish->decision, "keep") == 0;
    const char *end = "contradict each other for module";
    if (skipped && wanted)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT, "skip='%.100s' and only='%.100s' %s '%.200s'; drop one of them",
                       skipped, wanted, end, name);
    if (skipped && wish && !keep)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "skip='%.100s' and strategy['%.100s']='%s' %s '%.200s'; drop one of them", skipped,
                       wish->pattern, wish->decision, end, name);
    if (wanted && keep)
        return dw_fail(DW_ERROR_INVALID_ARGUMENT,
                       "only='%.100s' and strategy['%.100s']='keep' %s '%.200s'; drop one of them", wanted,
                       wish->pattern, end, name);
    return DW_OK;
}

dw_status dw_patterns_check(const dw_model *model, const dw_plan_options *options) {
    for (size_t i = 0; i < options->skip_count; i++)
        DW_TRY(expect_match(model, "skip", options->skip[i]));
    for (size_t i = 0; i < options->only_count; i++)
        DW_TRY(expect_match(model, "only", options->only[i]));
    for (size_t i = 0; i < options->wish_count; i++)
        DW_TRY(expect_match(model, "strategy", options->wishes[i].pattern));
    for (size_t i = 0; i < model->layer_count; i++)
        DW_TRY(expect_agreement(options, dw_or_empty(model->layers[i].name)));
    return DW_OK;
}
