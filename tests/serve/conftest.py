"""One server for all tests of this folder: the shipped configuration and the model ``cramped``.

Its watches and webhooks may reach this machine.
``cramped`` admits few requests. Its weights are random: its answers end at ``max_tokens`` only.
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

from raylens.cli.processes import find_marked
from testing.checkpoints import slow_smolvlm
from testing.server import running_server

ROOT = Path(__file__).parents[2]
MARK = f"raylens-test-{uuid.uuid4().hex}"
CRAMPED_MAX_REQUESTS = 3


def server_processes() -> list[int]:
    """Return the ids of the processes that these tests started, without zombies."""
    return [process.pid for process in find_marked("RAYLENS_TEST", MARK)]


def metrics_addresses() -> list[str]:
    """Return the addresses of Ray's Prometheus endpoints.

    Ray's list is late: just after the start, it is still the previous cluster's.
    """
    discovery = Path("/tmp/ray/prom_metrics_service_discovery.json").read_text()
    return list(json.loads(discovery)[0]["targets"])


def read_metric(metric: str, **labels: str) -> float:
    """Return the sum of a metric's series with these labels, over all endpoints; 0 without any.

    The endpoints are about 10 seconds behind.
    """
    total = 0.0
    for address in metrics_addresses():
        try:
            text = httpx.get(f"http://{address}/metrics", timeout=10).text
        except httpx.TransportError:
            continue
        for label_text, value in re.findall(rf"^{metric}{{(.*)}} (\S+)", text, re.MULTILINE):
            series_labels = dict(re.findall(r'(\w+)="([^"]*)"', label_text))
            if labels.items() <= series_labels.items():
                total += float(value)
    return total


def add_cramped_model(config: dict[str, Any], checkpoint: Path) -> None:
    (application,) = config["applications"]
    application["args"]["models"].append(
        {
            "name": "cramped",
            "family": "smolvlm",
            "checkpoint": str(checkpoint),
            "threads": 1,
            "max_batch_size": 2,
            "max_waiting": CRAMPED_MAX_REQUESTS - 2,
            "kv_cache": "64MiB",
            "feature_cache": "8MiB",
            "prefix_cache": "16MiB",
        }
    )
    application["deployments"].append(
        {
            "name": "cramped",
            "max_ongoing_requests": CRAMPED_MAX_REQUESTS,
            "max_queued_requests": 4,
            "ray_actor_options": {"num_cpus": 0.25},
        }
    )


def allow_this_machine(config: dict[str, Any]) -> None:
    """Let watches and webhooks reach servers of the tests."""
    (application,) = config["applications"]
    jobs = application["args"].setdefault("jobs", {})
    for part in ("watches", "webhooks"):
        jobs.setdefault(part, {})["allow"] = ["127.0.0.1"]


@contextmanager
def serving(
    checkpoint: Path, change: Callable[[dict[str, Any]], None] = lambda config: None
) -> Iterator[str]:
    """Run a server, and yield its URL. ``checkpoint`` is the cramped model's.

    Fails if the server leaves a process behind.
    """

    def change_all(config: dict[str, Any]) -> None:
        add_cramped_model(config, checkpoint)
        allow_this_machine(config)
        change(config)

    with running_server(ROOT / "serve_config.yaml", change_all, {"RAYLENS_TEST": MARK}) as url:
        assert server_processes()
        yield url
    assert not server_processes()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(slow_smolvlm(tmp_path_factory.mktemp("cramped"))) as url:
        yield url
