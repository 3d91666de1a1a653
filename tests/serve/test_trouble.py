"""Jobs outlast an overload, a store that is down and a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.ray_environment import ENVIRONMENT
from tests.serve.conftest import ROOT
from tests.trouble import SECRET

SECONDS = 30
"""How long each trouble lasts."""
DISK_BYTES = 64 * 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a small disk of its own. Mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mount = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mount.returncode != 0:
        pytest.skip(f"mounting a small disk is not allowed here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.cluster
def test_no_job_is_lost_or_fails_in_ordinary_trouble(small_disk: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.trouble", str(small_disk), str(SECONDS)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, "RAYLENS_WEBHOOK_SECRETS": SECRET},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    report = json.loads(next(line for line in process.stdout.splitlines() if line[:1] == "{"))
    print(report)
    assert report["jobs"] == {"succeeded": 300}
    assert report["lost"] == 0
    assert report["without_webhook"] == report["wrong_webhooks"] == 0
    # A queue that is still full when the store goes away answers 429 first.
    assert "503" in report["statuses"]["store"]
    assert set(report["statuses"]["store"]) <= {"429", "503"}
    assert "507" in report["statuses"]["disk"]
    assert "the disk for the pictures and files of jobs is full" in report["details"]["disk"]
    assert report["slowest_refusal_s"] < 8
