"""Decode steps without an engine around them."""

from __future__ import annotations

from functools import partial
from statistics import median

import torch

from benchmarks.engine.limits import timed
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import Model

UNBOUNDED = 2**40
"""Bytes: what a step needs is taken."""


def decode_step(model: Model, rows: int, context: int, steps: int) -> float:
    """Seconds of a step, the median of ``steps``; each row goes on behind ``context`` tokens."""
    cache: KVCache[int] = KVCache(model.kv_shape, UNBOUNDED, rows)
    for row in range(rows):
        cache.reserve(row, context + steps)
        cache.advance(row, context)
    times = []
    for step in range(steps):
        groups = [held for _, held in cache.groups()]
        tokens = torch.ones(rows, dtype=torch.int64, device=model.device)
        times.append(
            timed(partial(model.decode, tokens, [context + step] * rows, groups), model.device)
        )
        for row in range(rows):
            cache.advance(row)
    return median(times)
