#include "signals.h"

#include <signal.h>
#include <stddef.h>

#include "cli.h"

static volatile sig_atomic_t caught;

static void remember(int number) {
    caught = number;
}

void cli_signals_catch(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction before, action = {.sa_handler = remember};
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler == SIG_IGN) continue;
        sigaction(numbers[i], &action, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
}

int cli_signal(void) {
    return caught;
}

int cli_signal_die(void) {
    signal(caught, SIG_DFL);
    raise(caught);
    return CLI_FAILED;
}
