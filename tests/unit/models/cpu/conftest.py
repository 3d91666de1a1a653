"""The compiled kernels of every instruction set that this machine can run."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import cache

import pytest

from models.cpu.build import (
    INSTRUCTION_SETS,
    BuildError,
    InstructionSet,
    compiled_library,
    usable_sets,
)
from models.cpu.library import Library, open_library
from tests.unit.models.cpu.emulated import COMPILER, EMULATOR, EmulatedLibrary, compile_runner

FLAGS_VARIABLE = "RAYLENS_TEST_KERNEL_FLAGS"
"""Environment variable: more flags for the compiler; ``test_sanitizers.py`` sets it."""


@cache
def _library(instructions: InstructionSet) -> Library | None:
    flags = (*instructions.flags, *os.environ.get(FLAGS_VARIABLE, "").split())
    try:
        return open_library(compiled_library(replace(instructions, flags=flags)))
    except BuildError:
        return None


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    if shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None:
        pytest.skip(f"{COMPILER} or {EMULATOR} is missing")
    runner = tmp_path_factory.mktemp("emulated") / "runner"
    (neon,) = (instructions for instructions in INSTRUCTION_SETS if instructions.name == "neon")
    compile_runner(neon.flags, runner)
    return EmulatedLibrary(runner)


@pytest.fixture(
    params=[*usable_sets(), pytest.param(None, marks=pytest.mark.emulated)],
    ids=lambda instructions: instructions.name if instructions else "emulated",
)
def library(request: pytest.FixtureRequest) -> Library:
    if request.param is None:
        emulated: Library = request.getfixturevalue("emulated_library")
        return emulated
    compiled = _library(request.param)
    if compiled is None:
        pytest.skip("no C compiler")
    return compiled
