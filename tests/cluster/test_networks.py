"""Sessions of live video over a network that loses packets, or that goes away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.cluster.networks import Networks, networks
from tests.cluster.scripts import run_script

LOSS = 0.2
REASONS = ("the client has gone: it answers no more", "no frame came for 30 s")
"""Both are noticed after about as long."""


@pytest.fixture
def lossy() -> Iterator[Networks]:
    for tool, package in (("ip", "iproute2"), ("iptables", "iptables")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: apt-get install {package}")
    with ExitStack() as stack:
        try:
            made = stack.enter_context(networks(LOSS))
        except PermissionError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        yield made


@pytest.mark.cluster
def test_nothing_is_left_of_sessions_whatever_the_network_does(
    lossy: Networks, tmp_path: Path
) -> None:
    prefix = ("ip", "netns", "exec", lossy.server)
    names = {f"NETWORK_{name.upper()}": value for name, value in asdict(lossy).items()}
    report = run_script("live_networks", tmp_path, prefix, **names)

    lost = report["lossy"]
    assert lost["lost_packets"] > 100
    assert lost["frames"] > 0.3 * lost["shown"]
    assert lost["results"] > 10
    assert lost["answers"] > 10
    assert lost["left"] == {}

    vanished = report["vanished"]
    assert vanished["state"]["status"] == "ended"
    assert vanished["state"]["reason"] in REASONS
    assert vanished["left"] == {}

    killed = report["killed"]
    assert killed["status"] == 404
    assert "open another session" in killed["detail"]
    assert killed["client"] == "closed"  # it finds out by itself
    assert killed["results_again"] > 0
    assert killed["left"] == {}
