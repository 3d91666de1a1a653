"""Models scale, and settings and code change, without a failed request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 900


@pytest.mark.parametrize(
    "command", [["benchmarks.scaling"], ["benchmarks.updates", "--requests", "600"]]
)
def test_its_targets_are_met(command: list[str]) -> None:
    """In a process of its own: Ray reads its environment when it is imported."""
    run = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr[-4000:]}"
