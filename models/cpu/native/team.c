#define _GNU_SOURCE
#include "team.h"

#include <omp.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

/* Looks at the barrier before a thread sleeps: tens of microseconds, longer than the parts of a
 * step differ while all threads have a core. */
enum { SPINS = 2000 };

static inline void pause_core(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void sleep_while(atomic_uint *value, unsigned expected) {
#ifdef __linux__
    syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
#else
    (void)value, (void)expected;
    sched_yield();
#endif
}

static void wake_all(atomic_uint *value) {
#ifdef __linux__
    syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, 0x7fffffff, NULL, NULL, 0);
#else
    (void)value;
#endif
}

void team_barrier(const Member *member) {
    Barrier *barrier = member->barrier;
    unsigned generation = atomic_load(&barrier->generation);
    if (atomic_fetch_add(&barrier->waiting, 1) == member->size - 1) {
        atomic_store(&barrier->waiting, 0);
        atomic_store(&barrier->claimed, 0);
        atomic_store(&barrier->generation, generation + 1);
        if (atomic_load(&barrier->sleeping)) wake_all(&barrier->generation);
        return;
    }
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load(&barrier->generation) != generation) return;
        pause_core();
    }
    atomic_fetch_add(&barrier->sleeping, 1);
    while (atomic_load(&barrier->generation) == generation)
        sleep_while(&barrier->generation, generation);
    atomic_fetch_sub(&barrier->sleeping, 1);
}

Range team_claim(const Member *member, int count, int step) {
    atomic_int *claimed = &member->barrier->claimed;
    int first = atomic_load(claimed), size;
    do {
        int left = count - first;
        if (left <= 0) return (Range){count, count};
        size = left / (2 * member->size) / step * step;
        size = size > step ? size : step;
        size = size < left ? size : left;
    } while (!atomic_compare_exchange_weak(claimed, &first, first + size));
    return (Range){first, first + size};
}

Range team_claim_one(const Member *member, int count) {
    int first = atomic_fetch_add(&member->barrier->claimed, 1);
    return first < count ? (Range){first, first + 1} : (Range){count, count};
}

void team_run(int threads, Work *work, const void *task) {
    Barrier barrier = {0, 0, 0, 0};
    if (threads == 1) {
        work(&(Member){&barrier, 0, 1}, task);
        return;
    }
#pragma omp parallel num_threads(threads)
    work(&(Member){&barrier, omp_get_thread_num(), omp_get_num_threads()}, task);
}
