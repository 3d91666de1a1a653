"""Reads the status of a cluster of which a node is lost, and prints what it said as JSON.

``python -m tests.status_nodes FOLDER`` runs it in a process of its own, because Ray reads its
settings from the environment when it is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray._private import state as ray_state
from ray.cluster_utils import Cluster

from deployments.shared_state import ACTOR_NAME
from tests.picture_nodes import HEAD, MODEL, NODES, PICTURES, ask, deploy

PATIENCE_S = 90.0
"""Ray counts a node as lost after some 20 s, and collects metrics every 10 s."""
Status = dict[str, Any]


def wait_for(port: int, is_there: Callable[[Status], bool]) -> Status:
    """Return the first status with something; the last one if it doesn't come."""
    until = time.monotonic() + PATIENCE_S
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while True:
            status: Status = client.get("/api/v1/status").raise_for_status().json()
            if is_there(status) or time.monotonic() > until:
                return status
            time.sleep(1)


def node_of_history() -> str:
    """Return the node of the actor that keeps the history, which is lost with it."""
    actors = ray_state.actors(actor_state_name="ALIVE").values()
    (node,) = {
        str(actor["Address"]["NodeID"])
        for actor in actors
        if actor["Name"].endswith(f"::{ACTOR_NAME}")
    }
    return node


def describe(status: Status) -> dict[str, Any]:
    history = status["history"]
    return {
        "nodes": history["nodes"],
        "answering": history["answering"],
        "requests": history["totals"]["requests"],
        "replicas": status["deployments"][MODEL]["running"],
    }


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "resources": {HEAD: 1}, "include_dashboard": False},
    )
    try:
        workers = [cluster.add_node(num_cpus=4) for _ in range(NODES)]
        ray.init(address=cluster.address, log_to_driver=False)
        port = deploy(Path(sys.argv[1]))
        ask(port)
        whole = wait_for(port, lambda status: status["history"]["totals"]["requests"] >= PICTURES)
        kept = node_of_history()
        lost = next(worker for worker in workers if worker.node_id != kept)
        cluster.remove_node(lost, allow_graceful=False)
        left = wait_for(port, lambda status: status["history"]["nodes"] == NODES)
        print(json.dumps({"whole": describe(whole), "left": describe(left)}), flush=True)
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
