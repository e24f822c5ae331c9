/* A progress bar on a terminal's standard error; silent anywhere else. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct cli_progress {
    const char *label;
    uint64_t total;
    double started, drawn; /* seconds; drawn 0: nothing is on the screen */
    bool visible;
} cli_progress;

void cli_progress_start(cli_progress *progress, const char *label, uint64_t total_bytes);
/* Draws at most ten times a second. */
void cli_progress_show(cli_progress *progress, uint64_t done_bytes);
/* Takes the bar off the screen. */
void cli_progress_end(cli_progress *progress);

#endif
