/* Runs the tiles of a list of items on several threads. */
#ifndef CLI_WORKERS_H
#define CLI_WORKERS_H

#include "progress.h"
#include "tiles.h"

typedef struct cli_workers cli_workers;

/* `threads` as given with --threads; 0: DEEPWELL_THREADS, else all processors of this process. At most 16 are used:
 * beyond that files and memory are the limit, and every thread holds 8 MiB. */
dw_status cli_workers_start(int threads, cli_workers **workers);
int cli_workers_count(const cli_workers *workers);
void cli_workers_end(cli_workers *workers);

/* Does all items and shows the progress, counting on from `*done` bytes. Statistics are added in the order of the
 * tiles, so they do not depend on the number of threads. The first failure stops the rest; a signal gives CANCELLED. */
dw_status cli_workers_run(cli_workers *workers, const cli_item *items, size_t count, cli_progress *progress,
                          uint64_t *done);

#endif
