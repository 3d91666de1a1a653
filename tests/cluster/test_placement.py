"""Where pictures are processed in a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.scripts import run_script


@pytest.mark.cluster
def test_a_picture_is_processed_on_the_node_of_its_model(tmp_path: Path) -> None:
    report = run_script("picture_nodes", tmp_path)
    assert report["calls"] == 60
    assert report["near"] >= 55  # by chance it would be some 20
