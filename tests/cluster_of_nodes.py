"""A cluster on this machine whose workers have a preprocessor and a model each, for scripts that
tests run in a process of their own: Ray reads its settings from the environment when it is
imported."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class ServingCluster:
    cluster: Cluster
    workers: tuple[Any, ...]
    """Its nodes, except the head."""
    session: Path
    """Ray's folder with the logs of all nodes."""
    port: int


@contextmanager
def serving_cluster(folder: Path) -> Iterator[ServingCluster]:
    """Start a cluster, and deploy one preprocessor and one replica of the model on each worker."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "resources": {HEAD: 1}, "include_dashboard": False},
    )
    try:
        workers = tuple(cluster.add_node(num_cpus=4) for _ in range(NODES))
        context = ray.init(address=cluster.address, log_to_driver=False)
        session = Path(context.address_info["session_dir"])
        yield ServingCluster(cluster, workers, session, _deploy(folder))
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def _deploy(folder: Path) -> int:
    """Return the port."""
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


def ask(port: int) -> None:
    """Ask about one picture after another."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for number in range(PICTURES):
            picture = base64.b64encode(_photograph(number)).decode()
            body = {"image_url": f"data:image/jpeg;base64,{picture}"}
            client.post("/v1/caption", json=body).raise_for_status()


def _photograph(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()
