"""The kernels' tests again, compiled with the address and undefined behavior sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.models.cpu.conftest import FLAGS_VARIABLE

FLAGS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
TESTS = [
    str(Path(__file__).with_name(name))
    for name in ("test_linear.py", "test_decode.py", "test_attention.py")
]


def _library(name: str) -> str:
    command = ["cc", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.sanitizers
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_kernels_read_and_write_nothing_that_is_not_theirs() -> None:
    environment = {
        **os.environ,
        FLAGS_VARIABLE: FLAGS,
        # Python isn't compiled with the sanitizer, which has to be there before anything else.
        "LD_PRELOAD": _library("libasan.so"),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
