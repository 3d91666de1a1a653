"""Sends pictures to a cluster, and prints as JSON how many were processed on the node of their
model's replica: ``python -m tests.picture_nodes FOLDER``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from ray.serve.context import _get_global_client

from tests.cluster_of_nodes import ask, serving_cluster

CALL = re.compile(r" (\S+) -- CALL (process|generate) OK ")
"""The request's id and the method, in the log of a replica."""


def replica_nodes() -> dict[str, str]:
    """Return the nodes of the replicas, by the names of the replicas' logs."""
    (app,) = _get_global_client().get_serve_details()["applications"].values()
    return {
        f"{name}_{replica['replica_id']}": replica["node_id"]
        for name, deployment in app["deployments"].items()
        for replica in deployment["replicas"]
    }


def calls_by_node(nodes: dict[str, str], logs: Path) -> dict[str, dict[str, str]]:
    """Return where each request's methods ran, from the access logs."""
    calls: dict[str, dict[str, str]] = {}
    for log in logs.glob("replica_*.log"):
        node = next((node for name, node in nodes.items() if log.stem.endswith(name)), None)
        for request, method in CALL.findall(log.read_text()):
            assert node is not None, log
            calls.setdefault(request, {})[method] = node
    return calls


def main() -> None:
    with serving_cluster(Path(sys.argv[1])) as serving:
        ask(serving.port)
        calls = calls_by_node(replica_nodes(), serving.session / "logs" / "serve").values()
        near = sum(call["process"] == call["generate"] for call in calls)
        print(json.dumps({"calls": len(calls), "near": near}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
