"""The compiled kernels of every instruction set that this machine can run."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache

import pytest

from models.cpu.build import BuildError, InstructionSet, compiled_library, usable_sets
from models.cpu.library import Library, open_library

FLAGS_VARIABLE = "RAYLENS_TEST_KERNEL_FLAGS"
"""Environment variable: more flags for the compiler; ``test_sanitizers.py`` sets it."""


@cache
def _library(instructions: InstructionSet) -> Library | None:
    flags = (*instructions.flags, *os.environ.get(FLAGS_VARIABLE, "").split())
    try:
        return open_library(compiled_library(replace(instructions, flags=flags)))
    except BuildError:
        return None


@pytest.fixture(params=usable_sets(), ids=lambda instructions: instructions.name)
def library(request: pytest.FixtureRequest) -> Library:
    compiled = _library(request.param)
    if compiled is None:
        pytest.skip("no C compiler")
    return compiled
