/* A team of threads that runs one function, and its barrier.
 *
 * The threads are OpenMP's, because torch's kernels run on the same ones: a second pool would fight
 * with them for the cores, since OpenMP's threads spin for milliseconds after each of their regions.
 * The barrier is ours: it spins shortly and then sleeps, so that a thread that lost its core, perhaps
 * to another replica, doesn't keep the others' cores busy.
 */
#ifndef TEAM_H
#define TEAM_H

#include <stdatomic.h>

typedef struct {
    atomic_int waiting;
    atomic_uint generation;
} Barrier;

typedef struct {
    Barrier *barrier;
    int index;
    int size;
} Member;

typedef void Work(const Member *member, const void *task);

/* Calls `work` on up to `threads` threads. Returns once all have returned. */
void team_run(int threads, Work *work, const void *task);

/* Returns once every member has called it. */
void team_barrier(const Member *member);

/* The first of `count` items that are this member's share, and the first of the next member's. */
static inline int share_begin(const Member *member, int count) {
    return (int)((long long)count * member->index / member->size);
}
static inline int share_end(const Member *member, int count) {
    return (int)((long long)count * (member->index + 1) / member->size);
}

#endif
