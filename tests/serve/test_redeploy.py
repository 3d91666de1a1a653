"""Jobs survive a redeploy of the application over the same store, and live sessions go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.ray_environment import ENVIRONMENT
from tests.serve.conftest import ROOT


@pytest.mark.cluster  # for its time
def test_a_redeploy_neither_loses_a_job_nor_runs_it_twice_at_once_nor_cuts_an_answer(
    tmp_path: Path,
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.redeploy", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    lines = process.stdout.splitlines()
    report = json.loads(next(line for line in lines if line.startswith("{")))
    assert report["jobs"] == {"succeeded": 120}
    assert report["lost"] == 0
    assert report["overlaps"] == 0
    assert report["actors"] == 2
    # What the old queue still runs at its end goes over to the new one, and doesn't wait for the
    # lease of 3 s, nor for the next look at the store 5 s after that.
    assert report["longest_gap_s"] < 2.5
    states = [event for event in report["events"] if event != "retry"]
    assert "retry" in report["events"]
    assert [state for state in states if state != "running"] == ["queued", "succeeded"]
    # Sessions of old replicas have ended their answers, and that of a new one goes on.
    assert set(report["closes"]) == {1012}
    assert set(report["answers"]) <= {"whole", "overloaded"}
    # A picture that came too late; on a busy machine, old replicas get new sessions for a while.
    assert report["answers"].get("overloaded", 0) <= len(report["closes"])
    assert report["answers"]["whole"] > 10
