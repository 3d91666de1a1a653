"""The status of a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.scripts import run_script


@pytest.mark.cluster
def test_all_nodes_are_counted_and_the_loss_of_one_takes_nothing_back(tmp_path: Path) -> None:
    report = run_script("status_nodes", tmp_path)
    assert report["whole"] == {"nodes": 4, "answering": 4, "requests": 60, "replicas": 3}
    left = report["left"]
    assert (left["nodes"], left["answering"], left["requests"]) == (3, 3, 60)
