/* SIGINT, SIGTERM and SIGHUP become a flag, so that work stops at the next tile and leaves nothing behind. */
#ifndef CLI_SIGNALS_H
#define CLI_SIGNALS_H

/* From now on the three signals set the flag (those ignored at the start stay ignored), and a closed pipe is an error
 * of the write instead of the end of the process. */
void cli_signals_catch(void);

/* The signal that came, or 0. */
int cli_signal(void);

/* Ends the process as the signal would have, so that the caller (a shell, make) sees it. Returns the exit code to use
 * when it does not. */
int cli_signal_die(void);

#endif
