#include "io/model_config.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/status.h"
#include "io/output.h"
#include "io/reader.h"

enum { CONFIG_MAX = 1 << 20, LARGEST = 1 << 30 };

/* Families whose modules are named and laid out as describe.c reads them, by the model_type of transformers. */
static const struct {
    const char *name;
    bool transposed, layer_norms;
} families[] = {
    {"llama", false, false},       {"mistral", false, false},  {"qwen2", false, false},
    {"qwen3", false, false},       {"gemma", false, false},    {"gemma2", false, false},
    {"gemma3_text", false, false}, {"phi3", false, false},     {"granite", false, false},
    {"olmo2", false, false},       {"mixtral", false, false},  {"qwen2_moe", false, false},
    {"qwen3_moe", false, false},   {"olmoe", false, false},    {"deepseek_v2", false, false},
    {"deepseek_v3", false, false}, {"glm4_moe", false, false}, {"gpt_oss", false, false},
    {"phimoe", false, true},       {"olmo", false, true},      {"phi", false, true},
    {"gpt2", true, true},          {"gpt_neox", false, true},  {"stablelm", false, true},
    {"starcoder2", false, true},   {"cohere", false, true},    {"falcon", false, true},
};

/* The first of the names that holds a positive number; models of several parts keep theirs in text_config. */
static int64_t number(const json_t *root, const char *const *names) {
    const json_t *places[] = {root, json_object_get(root, "text_config")};
    for (int place = 0; place < 2; place++)
        for (const char *const *name = names; *name; name++) {
            const json_t *value = json_object_get(places[place], *name);
            json_int_t found = json_integer_value(value); /* 0 for what is no integer */
            if (found > 0 && found <= LARGEST) return found;
        }
    return 0;
}

static void read_family(const json_t *root, dw_model_config *config) {
    const char *name = json_string_value(json_object_get(root, "model_type"));
    const json_t *text = json_object_get(root, "text_config");
    const char *inner = json_string_value(json_object_get(text, "model_type"));
    if (inner) name = inner;
    if (!name) return;
    snprintf(config->family, sizeof config->family, "%s", name);
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(families[i].name, name) != 0) continue;
        config->known = true;
        config->transposed = families[i].transposed;
        config->layer_norms = families[i].layer_norms;
    }
}

dw_status dw_model_config_parse(const char *what, const char *text, size_t length, dw_model_config *config) {
    *config = (dw_model_config){.present = true};
    json_error_t error;
    json_t *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(root)) {
        const char *problem = root ? "it is another value" : error.text;
        json_decref(root);
        return dw_fail(DW_ERROR_CORRUPT, "%s: expected a JSON object: %s", what, problem);
    }
    read_family(root, config);
    config->vocabulary = number(root, (const char *const[]){"vocab_size", NULL});
    config->hidden = number(root, (const char *const[]){"hidden_size", "n_embd", "d_model", NULL});
    config->experts = number(root, (const char *const[]){"num_local_experts", "num_experts", "n_routed_experts", NULL});
    config->experts_of_a_token =
        number(root, (const char *const[]){"num_experts_per_tok", "experts_per_token", "top_k", NULL});
    json_decref(root);
    return DW_OK;
}

dw_status dw_model_config_read(const char *folder, dw_model_config *config) {
    *config = (dw_model_config){0};
    char *path = dw_path_join(folder, "config.json"), *text = NULL;
    size_t length = 0;
    if (!path) return dw_fail(DW_ERROR_OUT_OF_MEMORY, "%s: out of memory", folder);
    dw_status status = dw_read_file(path, CONFIG_MAX, &text, &length);
    if (status == DW_OK)
        status = dw_model_config_parse(path, text, length, config);
    else if (status == DW_ERROR_NOT_FOUND)
        status = DW_OK;
    free(text);
    free(path);
    return status;
}
