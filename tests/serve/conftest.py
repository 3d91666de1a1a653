"""One graph for all tests of this folder: the shipped configuration, and a second model with little
room.

That model has random weights, so that its answers go on until their length ends them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from raylens.cli.processes import marked
from testing.checkpoints import random_smolvlm
from testing.server import running

ROOT = Path(__file__).parents[2]
MARK = f"raylens-test-{uuid.uuid4().hex}"
CRAMPED_ROOM = 3


def processes() -> list[int]:
    """The processes that were started for these tests, zombies left out."""
    return marked("RAYLENS_TEST", MARK)


def measured(metric: str, **labels: str) -> float:
    """What Ray's Prometheus endpoints tell of a metric, summed over all that have these labels; 0
    where none has.

    They are some 10 seconds behind, and at first their list is that of the cluster before.
    """
    total = 0.0
    targets = json.loads(Path("/tmp/ray/prom_metrics_service_discovery.json").read_text())[0][
        "targets"
    ]
    for address in targets:
        try:
            text = httpx.get(f"http://{address}/metrics", timeout=10).text
        except httpx.TransportError:
            continue
        for found, value in re.findall(rf"^{metric}{{(.*)}} (\S+)", text, re.MULTILINE):
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found)).items():
                total += float(value)
    return total


def add_a_cramped_model(config: dict[str, Any], checkpoint: Path) -> None:
    (application,) = config["applications"]
    application["args"]["models"].append(
        {
            "name": "cramped",
            "family": "smolvlm",
            "checkpoint": str(checkpoint),
            "threads": 1,
            "max_batch_size": 2,
            "max_waiting": CRAMPED_ROOM - 2,
            "kv_cache": "64MiB",
            "feature_cache": "8MiB",
            "prefix_cache": "16MiB",
        }
    )
    application["deployments"].append(
        {
            "name": "cramped",
            "max_ongoing_requests": CRAMPED_ROOM,
            "max_queued_requests": 4,
            "ray_actor_options": {"num_cpus": 0.25},
        }
    )


@contextmanager
def serving(
    checkpoint: Path, change: Callable[[dict[str, Any]], None] = lambda config: None
) -> Iterator[str]:
    """The URL of a running server; ``checkpoint`` is the cramped model's. At the end, it must have
    left no process behind."""

    def changed(config: dict[str, Any]) -> None:
        add_a_cramped_model(config, checkpoint)
        change(config)

    with running(ROOT / "serve_config.yaml", changed, {"RAYLENS_TEST": MARK}) as url:
        assert processes()
        yield url
    assert not processes()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(random_smolvlm(tmp_path_factory.mktemp("cramped"))) as url:
        yield url
