"""Jobs while the application is deployed anew over the same store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from raylens.cli.run import ENVIRONMENT
from tests.serve.conftest import ROOT


def test_two_queues_that_overlap_in_a_redeploy_lose_nothing_and_run_nothing_at_once(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.redeploy", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["jobs"] == {"succeeded": 120}
    assert told["lost"] == 0
    assert told["overlaps"] == 0
    assert told["actors"] == 2
