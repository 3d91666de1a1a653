"""Memory and time that a small file or recipe can ask for."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preprocessing.header import PictureLimits
from preprocessing.memory import MemoryBudget, estimate_picture
from preprocessing.pipeline import enhance, run
from raylens.core.errors import DeadlineExceeded, PayloadTooLarge
from raylens.core.recipe import Denoise, Recipe

SIDE = 3000
LIMITS = PictureLimits(10**8, 10**7, 4, 4000)
MEASURE = """
import re, sys
from preprocessing.decode import decode
from preprocessing.header import PictureLimits
def read(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
data = sys.stdin.buffer.read()
before = read("VmRSS")
decode(data, PictureLimits(10**8, 10**8, 4, 4000))
print(read("VmHWM") - before)
"""
FILES: list[tuple[str, str, dict[str, Any]]] = [
    ("RGB", "WEBP", {}),
    ("RGBA", "WEBP", {"lossless": True}),
    ("RGB", "AVIF", {"speed": 10}),
    ("RGB", "PNG", {}),
    ("I;16", "PNG", {}),
    ("CMYK", "TIFF", {}),
    ("CMYK", "JPEG", {"progressive": True}),
    ("P", "GIF", {}),
]


@pytest.mark.parametrize(("mode", "file_format", "options"), FILES)
def test_the_estimate_covers_what_decoding_takes(
    mode: str, file_format: str, options: dict[str, Any]
) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (SIDE, SIDE)).save(buffer, file_format, **options)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], input=buffer.getvalue(), capture_output=True, check=True
    )
    estimate = estimate_picture(file_format, SIDE, SIDE)
    assert 0.2 * estimate < int(result.stdout) < 1.1 * estimate


def do_nothing() -> None:
    return None


class Work(threading.Thread):
    """Work in a thread that holds some memory until it is told to end."""

    def __init__(self, budget: MemoryBudget, count: int) -> None:
        super().__init__(daemon=True)
        self._budget, self._count = budget, count
        self.has_memory = threading.Event()
        self.may_end = threading.Event()
        self.start()

    def run(self) -> None:
        with self._budget.open(do_nothing) as reserve:
            reserve(self._count)
            self.has_memory.set()
            self.may_end.wait(30)

    def end(self) -> None:
        self.may_end.set()
        self.join(30)


def test_what_does_not_fit_waits_in_order() -> None:
    budget = MemoryBudget(100)
    first, second = Work(budget, 60), Work(budget, 40)
    assert first.has_memory.wait(10)
    assert second.has_memory.wait(10)
    large = Work(budget, 90)
    while not budget._waiting:
        pass
    small = Work(budget, 10)
    second.end()
    assert not large.has_memory.wait(0.2)
    assert not small.has_memory.is_set()  # it came later, though it would fit
    first.end()
    assert large.has_memory.wait(10)
    assert small.has_memory.wait(10)
    large.end()
    small.end()


def test_what_waits_ends_at_its_deadline() -> None:
    budget = MemoryBudget(100)

    def raise_at_once() -> None:
        raise DeadlineExceeded("too late")

    def wait_for(count: int, check: Callable[[], None]) -> None:
        with budget.open(check) as reserve:
            reserve(count)

    with budget.open(do_nothing) as reserve:
        reserve(60)
        with pytest.raises(DeadlineExceeded):
            wait_for(60, raise_at_once)
    wait_for(100, raise_at_once)  # it left no trace


def test_what_never_fits_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 1000)).save(buffer, "WEBP", lossless=True)
    budget = MemoryBudget(10**7)

    def decode() -> None:
        with budget.open(do_nothing) as reserve:
            run(buffer.getvalue(), Recipe(), LIMITS, reserve=reserve)

    with pytest.raises(PayloadTooLarge, match="takes about 17000000 bytes of memory; the limit"):
        decode()


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [(Denoise(enabled=True, method="nlm"), 16), (Denoise(enabled=True, diameter=15), 3)],
)
def test_a_filter_that_would_take_too_long_is_skipped(settings: Denoise, seconds: int) -> None:
    pixels = np.zeros((4000, 4000, 3), np.uint8)
    recipe = Recipe(size=(4000, 4000), denoise=settings)
    result = enhance(pixels, recipe, max_filter_s=2)
    assert result.pixels is pixels
    assert result.warnings == (
        f"denoise: skipped ({settings.method} of 4000×4000 pixels takes about {seconds} s;"
        " the limit is 2 s)",
    )
    small = enhance(pixels[:300, :300].copy(), recipe, max_filter_s=2)
    assert small.warnings == ()
