"""Requests and jobs while each part of a cluster is killed in turn."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("redis-server") is None,
        reason="redis-server is missing: apt-get install redis-server",
    ),
]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


def test_no_request_fails_and_no_job_is_lost_whatever_is_killed() -> None:
    """In a process of its own: Ray reads its environment when it is imported."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--requests", "1000", "--jobs", "100"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(run.stdout)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr[-4000:]}"
