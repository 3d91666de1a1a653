"""How the kernels are compiled, found and chosen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.cpu.build import (
    CACHE_VARIABLE,
    PORTABLE,
    BuildError,
    InstructionSet,
    best_library,
    compiled_library,
    usable_sets,
)
from models.cpu.library import SWITCH

MULTIPLY = """
import logging
logging.basicConfig(level=logging.INFO)
import torch
from models.linear import WeightPacker
layer = WeightPacker().pack_weight(torch.eye(4))
print(type(layer).__name__, layer(torch.ones(1, 4)).tolist())
"""
QUICK = InstructionSet("quick", PORTABLE.machines, ("-O0",))
"""Compiles faster than the others."""
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def multiply(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Multiply in a new process, whose cache is empty."""
    return subprocess.run(
        [sys.executable, "-c", MULTIPLY],
        env={**os.environ, CACHE_VARIABLE: str(tmp_path / "cache"), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


@pytest.mark.parametrize(
    ("features", "names"),
    [
        ("", ["portable"]),
        ("sse2 avx2", ["portable"]),
        ("avx2 fma", ["avx2", "portable"]),
        ("avx2 fma avx_vnni", ["avx2_vnni", "avx2", "portable"]),
        (
            "avx2 fma avx512f avx512bw avx512vl avx512dq avx512_vnni",
            ["avx512", "avx2", "portable"],
        ),
        ("asimddp", ["portable"]),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="features of x86")
def test_the_best_usable_set_is_the_first(features: str, names: list[str]) -> None:
    usable = usable_sets(frozenset(features.split()))
    assert [instructions.name for instructions in usable] == names


@needs_compiler
def test_a_library_is_compiled_once_and_left_alone(tmp_path: Path) -> None:
    library = compiled_library(QUICK, tmp_path)
    written = library.stat().st_mtime_ns
    assert compiled_library(QUICK, tmp_path).stat().st_mtime_ns == written
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        f".{QUICK.name}.lock",
        library.name,
    ]


@needs_compiler
def test_a_failed_compilation_leaves_nothing(tmp_path: Path) -> None:
    wrong = InstructionSet("wrong", PORTABLE.machines, ("-mno-such-flag",))
    with pytest.raises(BuildError, match="no-such-flag"):
        compiled_library(wrong, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".wrong.lock"]


@needs_compiler
def test_an_older_compiler_gets_flags_that_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    unknown = InstructionSet("newer", PORTABLE.machines, ("-mno-such-flag",))
    assert best_library([unknown, QUICK]).name.startswith("quick-")
    with pytest.raises(BuildError, match="no-such-flag"):
        best_library([unknown])
    with pytest.raises(BuildError, match="no kernels for this kind of machine"):
        best_library([])


def test_a_cache_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError):
        compiled_library(PORTABLE, tmp_path / "file")


def test_without_a_compiler_torch_multiplies_and_the_log_says_so(tmp_path: Path) -> None:
    result = multiply(tmp_path, PATH="")
    assert result.stdout == "_PlainLinear [[1.0, 1.0, 1.0, 1.0]]\n"
    assert "apt-get install gcc" in result.stderr


def test_the_kernels_can_be_switched_off(tmp_path: Path) -> None:
    result = multiply(tmp_path, **{SWITCH: "torch"})
    assert result.stdout.startswith("_PlainLinear")
    assert not (tmp_path / "cache").exists()
