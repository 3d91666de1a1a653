"""Decode steps of a model, without an engine around them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.engine.limits import measure_seconds
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import KVRows, KVSpec, ModelOutput

UNBOUNDED = 2**40
"""KV cache budget in bytes that no step reaches."""


class DecodingModel(Protocol):
    """The part of :class:`raylens.engine.model.Model` that decode steps need."""

    device: str
    kv_spec: KVSpec

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput: ...


def measure_decode_step(model: DecodingModel, num_rows: int, context: int, steps: int) -> float:
    """Return the median seconds of a decode step; see :func:`time_decode_steps`."""
    return median(time_decode_steps(model, num_rows, context, steps))


def time_decode_steps(model: DecodingModel, num_rows: int, context: int, steps: int) -> list[float]:
    """Return the seconds of each of ``steps`` decode steps.

    Each of the ``num_rows`` rows starts with ``context`` tokens in its cache.
    """
    cache: KVCache[int] = KVCache(model.kv_spec, UNBOUNDED, num_rows)
    for row in range(num_rows):
        cache.reserve(row, context + steps)
        cache.advance(row, context)
    times = []
    for step in range(steps):
        rows_by_arena = [kv_rows for _, kv_rows in cache.arenas_in_use()]
        tokens = torch.ones(num_rows, dtype=torch.int64, device=model.device)
        decode = partial(model.decode, tokens, [context + step] * num_rows, rows_by_arena)
        times.append(measure_seconds(decode, model.device))
        for row in range(num_rows):
            cache.advance(row)
    return times
