"""Reads the status of a cluster of which a node is lost, and prints what it said as JSON:
``python -m tests.status_nodes FOLDER``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from ray._private import state as ray_state

from deployments.shared_state import ACTOR_NAME
from tests.cluster_of_nodes import MODEL, NODES, PICTURES, ask, serving_cluster

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
    with serving_cluster(Path(sys.argv[1])) as serving:
        ask(serving.port)
        whole = wait_for(
            serving.port, lambda status: status["history"]["totals"]["requests"] >= PICTURES
        )
        kept = node_of_history()
        lost = next(worker for worker in serving.workers if worker.node_id != kept)
        serving.cluster.remove_node(lost, allow_graceful=False)
        left = wait_for(serving.port, lambda status: status["history"]["nodes"] == NODES)
        print(json.dumps({"whole": describe(whole), "left": describe(left)}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
