"""A node of a cluster is drained under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.scripts import run_script


@pytest.mark.cluster
def test_a_drained_node_loses_no_request_and_hands_over_events(tmp_path: Path) -> None:
    # Instead of 30 s, which a load balancer may need.
    report = run_script("drain_node", tmp_path, RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S="5")
    assert report["status"] == 0, report["output"]
    assert "Ingress" in report["moved"]
    assert report["left"] == []
    assert "nothing is left: the machine can be stopped" in report["output"]
    assert list(report["outcomes"]) == ["200"]
    states = [event for event in report["events"] if event != "retry"]
    assert states == ["queued", "running", "succeeded"]  # none is lost, none is repeated
    assert "retry" in report["events"]
