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
    atomic_int sleeping;
    atomic_uint generation;
    atomic_int claimed; /* items of the work since the last barrier */
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

typedef struct {
    int first, end;
} Range;

/* Claims the next of `count` items, a multiple of `step` of them but at the end. Returns an empty range
 * once all are claimed. Between two barriers, a team divides one kind of items so.
 *
 * A member that runs slowly, or lost its core for a while, claims less. The first claims are large,
 * so that a member reads memory in long runs, and the last ones small, so that all end together. */
Range team_claim(const Member *member, int count, int step);
/* The same, one item at a time. */
Range team_claim_one(const Member *member, int count);

/* The first of `count` items that are this member's share, and the first of the next member's. */
static inline int share_begin(const Member *member, int count) {
    return (int)((long long)count * member->index / member->size);
}
static inline int share_end(const Member *member, int count) {
    return (int)((long long)count * (member->index + 1) / member->size);
}

#endif
