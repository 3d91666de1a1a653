"""Jobs survive a redeploy of the application over the same store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from deployments.ray_environment import ENVIRONMENT
from tests.serve.conftest import ROOT


def test_queues_that_overlap_in_a_redeploy_neither_lose_a_job_nor_run_it_twice_at_once(
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
