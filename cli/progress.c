#include "progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cli.h"

enum { BAR_MAX = 40, BAR_MIN = 8 };

void cli_progress_start(cli_progress *progress, const char *label, uint64_t total_bytes) {
    const char *terminal = getenv("TERM");
    *progress = (cli_progress){.label = label, .total = total_bytes, .started = cli_seconds()};
    progress->visible = total_bytes && isatty(STDERR_FILENO) && !(terminal && strcmp(terminal, "dumb") == 0);
}

static int terminal_columns(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 80;
}

static void format_time(double seconds, char text[16]) {
    if (!(seconds < 360000)) seconds = 359999;
    int s = (int)(seconds + 0.5);
    if (s >= 3600)
        snprintf(text, 16, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(text, 16, "%d:%02d", s / 60, s % 60);
}

void cli_progress_show(cli_progress *progress, uint64_t done_bytes) {
    if (!progress->visible) return;
    double now = cli_seconds(), elapsed = now - progress->started;
    if (progress->drawn > 0 && now - progress->drawn < 0.1) return;
    progress->drawn = now;
    double fraction = (double)done_bytes / (double)progress->total;
    if (fraction > 1) fraction = 1;

    char done[32], total[32], rate[32], left[16] = "-:--", facts[160];
    if (done_bytes && elapsed > 0) format_time(elapsed * (1 - fraction) / fraction, left);
    snprintf(facts, sizeof facts, " %3d%%  %s of %s  %s/s  ETA %s", (int)(100 * fraction), cli_size(done_bytes, done),
             cli_size(progress->total, total),
             cli_size(elapsed > 0 ? (uint64_t)((double)done_bytes / elapsed) : 0, rate), left);
    int columns = terminal_columns(), width = columns - 1 - (int)strlen(facts) - (int)strlen(progress->label) - 3;
    if (width > BAR_MAX) width = BAR_MAX;
    if (width < BAR_MIN) {
        fprintf(stderr, "\r%.*s\033[K", columns - 1, facts + 1);
    } else {
        char bar[BAR_MAX + 1] = {0};
        int full = (int)(fraction * width);
        memset(bar, ' ', (size_t)width);
        memset(bar, '#', (size_t)full);
        fprintf(stderr, "\r%s [%s]%s\033[K", progress->label, bar, facts);
    }
    fflush(stderr);
}

void cli_progress_end(cli_progress *progress) {
    if (progress->drawn > 0) fputs("\r\033[K", stderr);
    progress->drawn = 0;
    progress->visible = false;
}
