/* Scratch memory, divided into arrays. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include "linear.h"

/* Takes `bytes` from *used on, at a multiple of 64. */
static inline void *take(char *memory, size_t *used, size_t bytes) {
    void *taken = memory ? memory + *used : NULL;
    *used += round_up(bytes, 64);
    return taken;
}

#endif
