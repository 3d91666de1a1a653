"""Preprocessing in processes of its own, as in the server.

Preprocessing in the engine's process would wait for the interpreter lock that the engine's thread
holds. The worker processes import this module, which therefore imports neither torch nor models.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Barrier

import cv2

from preprocessing.header import PictureLimits
from preprocessing.pipeline import Pixels, run
from raylens.core.recipe import DEFAULT

LIMITS = PictureLimits(max_bytes=20 * 2**20, max_pixels=64_000_000, min_side=4, max_side=16_384)
"""The server's default limits."""
START_SECONDS = 60.0
_all_started: Barrier


def start_processes(count: int, jpeg: bytes) -> ProcessPoolExecutor:
    """Start ``count`` worker processes, and warm up each with a picture."""
    context = get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _initialize, (context.Barrier(count),))
    list(pool.map(_warm_up, [jpeg] * count))
    return pool


def preprocess(jpeg: bytes) -> tuple[Pixels, float]:
    """Return a picture's pixels, and the seconds that preprocessing took."""
    started = time.perf_counter()
    pixels = run(jpeg, DEFAULT, LIMITS).pixels
    return pixels, time.perf_counter() - started


def _initialize(all_started: Barrier) -> None:
    global _all_started
    _all_started = all_started
    cv2.setNumThreads(1)  # one picture per core is faster than several cores per picture
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this process when its parent ends.

    A parent that is killed can't shut down its pool, and the orphaned workers would keep its output
    pipe open.
    """
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _warm_up(jpeg: bytes) -> None:
    """Preprocess a picture, then wait for the other workers.

    Without the barrier, one fast worker could take all the pictures.
    """
    preprocess(jpeg)
    _all_started.wait(START_SECONDS)
