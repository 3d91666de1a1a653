"""The families' random checkpoints and loaders, for tests of every family."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

from models.moondream import model as moondream
from models.qwen2_5_vl import model as qwen2_5_vl
from models.smolvlm import model as smolvlm
from testing.checkpoints import random_moondream, random_qwen2_5_vl, random_smolvlm

T = TypeVar("T")

every_family = pytest.mark.parametrize(
    ("make", "load"),
    [
        (random_smolvlm, smolvlm.load),
        (random_qwen2_5_vl, qwen2_5_vl.load),
        (random_moondream, moondream.load),
    ],
    ids=["smolvlm", "qwen2_5_vl", "moondream"],
)


def run_slices(slices: Generator[None, None, T]) -> T:
    """Run all slices, and return the result."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            result: T = end.value
            return result
