"""Gives memory back before a replica's share of a GPU is used up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from raylens.engine.engine import Engine
from raylens.engine.limits import MIB

logger = logging.getLogger(__name__)

PERIOD_S = 1.0
"""Seconds between two checks."""
PERIOD_IF_FULL_S = 60.0
"""The same, after there was nothing more to give back."""


class MemoryGuard:
    """Checks the memory between steps, and clears it above a threshold.

    First the allocator's unused blocks are given back, then the older halves of the engine's caches
    are dropped, as often as necessary. The KV cache of running sequences is reserved by design, and
    counts neither as used nor as available.

    ``available`` is the replica's share of the GPU, in bytes, without the KV cache.
    ``read_reserved`` returns the bytes that the allocator holds, the KV cache included, and
    ``release`` gives its unused blocks back.
    """

    def __init__(
        self,
        available: int,
        kv_bytes: int,
        threshold: float,
        read_reserved: Callable[[], int],
        release: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._allowed = threshold * available
        self._kv_bytes = kv_bytes
        self._read_reserved = read_reserved
        self._release = release
        self._clock = clock
        self._next_check = clock() + PERIOD_S

    def check(self, engine: Engine) -> None:
        """Clear memory if that is due and necessary."""
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + PERIOD_S
        if not self._is_over:
            return
        before = self._read_reserved()
        self._release()
        while self._is_over and engine.shrink_caches():
            self._release()
        freed = before - self._read_reserved()
        logger.info("gave back %.0f MiB of memory", freed / MIB)
        if self._is_over:
            logger.warning("the memory in use exceeds vram_threshold without any cache")
            self._next_check = now + PERIOD_IF_FULL_S

    @property
    def _is_over(self) -> bool:
        return self._read_reserved() - self._kv_bytes > self._allowed
