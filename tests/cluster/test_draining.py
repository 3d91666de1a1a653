"""A node of a cluster is drained under load."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.ray_environment import ENVIRONMENT, ONE_MACHINE

ROOT = Path(__file__).parents[2]


@pytest.mark.cluster
def test_a_drained_node_loses_no_request_and_hands_over_events(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.drain_node", str(tmp_path)],
        cwd=ROOT,
        env={
            **os.environ,
            **ENVIRONMENT,
            **ONE_MACHINE,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # keeps the cluster apart from any other
            "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "5",  # of 30: the time of a load balancer
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    lines = process.stdout.splitlines()
    report = json.loads(next(line for line in lines if line.startswith("{")))
    print(json.dumps(report, indent=1))
    assert report["status"] == 0, report["output"]
    assert "Ingress" in report["moved"]
    assert report["left"] == []
    assert "nothing is left: the machine can be stopped" in report["output"]
    assert list(report["outcomes"]) == ["200"]
    states = [event for event in report["events"] if event != "retry"]
    assert states == ["queued", "running", "succeeded"]  # none is lost, none is repeated
    assert "retry" in report["events"]
