"""The families' random checkpoints and loaders, for tests of every family."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from raylens.core.families import BUILT_IN, Family, load_attribute
from testing.checkpoints import random_moondream, random_qwen2_5_vl, random_smolvlm

T = TypeVar("T")

RANDOM_CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "moondream": random_moondream,
    "smolvlm": random_smolvlm,
    "qwen2_5_vl": random_qwen2_5_vl,
}
"""Functions that write a checkpoint of random weights, by family."""
_BUILT_IN: list[Family] = [load_attribute(path) for path in BUILT_IN]

every_family = pytest.mark.parametrize(
    ("make", "load"),
    [
        pytest.param(RANDOM_CHECKPOINTS[family.name], load_attribute(family.load), id=family.name)
        for family in _BUILT_IN
    ],
)


def run_slices(slices: Generator[None, None, T]) -> T:
    """Run all slices, and return the result."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
