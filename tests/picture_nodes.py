"""Sends pictures to a cluster whose nodes have preprocessors and models each, and prints as JSON
how many were processed on the node of their model's replica.

``python -m tests.picture_nodes FOLDER`` runs it in a process of its own, because Ray reads its
settings from the environment when it is imported.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import ray
from PIL import Image
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from testing.ports import free_port

MODEL = "timed"
HEAD = "head"
"""A resource of the head, which has the ingress and nothing else."""
PICTURES = 60
NODES = 3
START_S = 180.0
CALL = re.compile(r" (\S+) -- CALL (process|generate) OK ")
"""The request's id and the method, in the log of a replica."""


def deploy(folder: Path) -> int:
    """Deploy one preprocessor and one replica of the model on each worker. Return the port."""
    port = free_port()
    one_each = {"num_replicas": NODES, "max_replicas_per_node": 1}
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"enable_access_log": True},
        "applications": [
            {
                "name": "raylens",
                "route_prefix": "/",
                "import_path": "testing.timed_graph:build_timed_app",
                "args": {
                    "models": [{"name": MODEL, "family": "smolvlm", "checkpoint": "0.1"}],
                    "jobs": {"data_dir": str(folder)},
                },
                "deployments": [
                    {"name": "Preprocessor", **one_each},
                    {"name": MODEL, **one_each},
                    {
                        "name": "Ingress",
                        "ray_actor_options": {"num_cpus": 0, "resources": {HEAD: 1}},
                    },
                ],
            }
        ],
    }
    serve.start(http_options=config["http_options"], proxy_location="HeadOnly")
    schema = ServeDeploySchema.model_validate(config)
    _get_global_client().deploy_apps(schema, _blocking=False)
    until = time.monotonic() + START_S
    while serve.status().applications["raylens"].status != ApplicationStatus.RUNNING:
        assert time.monotonic() < until, serve.status()
        time.sleep(0.25)
    return port


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


def photograph(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def ask(port: int) -> None:
    """Ask about one picture after another."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for number in range(PICTURES):
            picture = base64.b64encode(photograph(number)).decode()
            body = {"image_url": f"data:image/jpeg;base64,{picture}"}
            client.post("/v1/caption", json=body).raise_for_status()


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "resources": {HEAD: 1}, "include_dashboard": False},
    )
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=4)
        context = ray.init(address=cluster.address, log_to_driver=False)
        port = deploy(Path(sys.argv[1]))
        ask(port)
        nodes = replica_nodes()
        session = Path(context.address_info["session_dir"])
        calls = calls_by_node(nodes, session / "logs" / "serve").values()
        near = sum(call["process"] == call["generate"] for call in calls)
        print(json.dumps({"calls": len(calls), "near": near}), flush=True)
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
