"""Settings change under load, and no replica is restarted."""

from __future__ import annotations

import subprocess
import sys

from tests.serve.conftest import ROOT


def test_changed_settings_are_in_force_without_a_restart_or_a_failed_request() -> None:
    """In a process of its own: Ray reads its environment when it is imported."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.updates", "--part", "settings", "--requests", "160"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr[-4000:]}"
    assert "0 of 160 requests failed" in run.stdout
