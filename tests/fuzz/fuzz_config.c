/* The input is the text of a config.json. What is accepted has numbers that arithmetic can bear, and a name that ends.
 */
#include "fuzz.h"

#include "io/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    dw_model_config config;
    if (dw_model_config_parse("input", (const char *)data, size, &config) != DW_OK) return 0;
    const int64_t numbers[] = {config.vocabulary, config.hidden, config.experts, config.experts_of_a_token};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        REQUIRE(numbers[i] >= 0 && numbers[i] <= (int64_t)1 << 30);
    REQUIRE(memchr(config.family, 0, sizeof config.family));
    REQUIRE(config.present && (!config.known || *config.family));
    return 0;
}
