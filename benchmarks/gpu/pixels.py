"""Preprocessing in processes of its own, as in the server: nothing of it waits for the
interpreter's lock that the engine's thread holds. The processes import this module, so it imports
neither torch nor models."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Barrier

import cv2

from preprocessing.decode import DecodeLimits
from preprocessing.pipeline import Pixels, run
from raylens.core.recipe import DEFAULT

LIMITS = DecodeLimits(max_bytes=20 * 2**20, max_pixels=64_000_000, min_side=4, max_side=16_384)
"""The server's."""
START_SECONDS = 60.0
_all_there: Barrier


def processes(count: int, jpeg: bytes) -> ProcessPoolExecutor:
    """So many processes, each of which has seen a picture."""
    context = get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _begin, (context.Barrier(count),))
    list(pool.map(_warm, [jpeg] * count))
    return pool


def preprocess(jpeg: bytes) -> tuple[Pixels, float]:
    """A picture's pixels, and the seconds that they took."""
    started = time.perf_counter()
    pixels = run(jpeg, DEFAULT, LIMITS).pixels
    return pixels, time.perf_counter() - started


def _begin(all_there: Barrier) -> None:
    global _all_there
    _all_there = all_there
    cv2.setNumThreads(1)  # several pictures at a time use the cores better
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """One that is killed tells its pool nothing, and whoever reads its output would wait for these
    processes."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _warm(jpeg: bytes) -> None:
    """Waits for the others: else one process could see all of the pictures."""
    preprocess(jpeg)
    _all_there.wait(START_SECONDS)
