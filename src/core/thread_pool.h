/* A small pool of threads for loops whose iterations are independent. */
#ifndef DW_CORE_THREAD_POOL_H
#define DW_CORE_THREAD_POOL_H

#include <stdint.h>

typedef struct dw_thread_pool dw_thread_pool;

/* A pool that runs loops on `threads` threads, the caller's included. Threads start with the first loop that wants
 * them. NULL when there is no memory. */
dw_thread_pool *dw_thread_pool_create(int threads);

/* Ends the threads. No loop may be running. NULL is allowed. */
void dw_thread_pool_destroy(dw_thread_pool *pool);

int dw_thread_pool_size(const dw_thread_pool *pool);

/* Calls body(argument, i) once for each i in [0, count), on up to dw_thread_pool_size threads, each in the default
 * floating-point state; returns when all are done. Iterations may run in any order. Several threads may run loops at
 * once; a body must not start one. In a child after fork() the threads are started anew. When the system refuses a
 * thread the loop runs on those there are. */
void dw_parallel_for(dw_thread_pool *pool, int64_t count, void (*body)(void *argument, int64_t i), void *argument);

#endif
