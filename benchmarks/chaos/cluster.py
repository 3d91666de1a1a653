"""A Ray cluster of several nodes on this machine, whose GCS keeps its state in Redis, and the kills
of its parts."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
import yaml
from ray import serve
from ray._common.utils import reset_ray_address
from ray._private.node import Node
from ray._private.utils import read_ray_address
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, DeploymentStatus, ProxyStatus, ServeDeploySchema

from testing.ports import free_port

MODEL = "timed"
SECONDS = "0.05*4"
"""The model's answers come in four parts of 50 ms each."""
BATCH = 8
WAITING = 56
WORKERS = 2
REPLICAS = {"Ingress": 2, "Preprocessor": 2, MODEL: 4}
START_S = 120.0
POLL_S = 0.25
CONTROLLER = "ray::ServeController"
PROXY = "ray::ProxyActor"


def replica_of(deployment: str) -> str:
    """Return how the titles of a deployment's processes begin."""
    return f"ray::ServeReplica:raylens:{deployment}"


def settings(folder: Path, port: int) -> dict[str, Any]:
    """Return the shipped application of a cluster with one timed model, and with every number of
    replicas fixed."""
    config: dict[str, Any] = yaml.safe_load(Path("cluster_application.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["import_path"] = "testing.timed_graph:build_timed_app"
    model = {
        "name": MODEL,
        "family": "smolvlm",
        "checkpoint": SECONDS,
        "max_batch_size": BATCH,
        "max_waiting": WAITING,
    }
    jobs = {
        "data_dir": str(folder / "data"),
        "capacity": 1000,
        "workers": 8,
        "lease_s": 5,
        "webhooks": {"allow": ["127.0.0.1"]},
    }
    application["args"] = {"models": [model], "jobs": jobs}
    by_name = {deployment["name"]: deployment for deployment in application["deployments"]}
    by_name[MODEL] = {**by_name["smolvlm"], "name": MODEL}
    application["deployments"] = [_fixed(by_name[name], count) for name, count in REPLICAS.items()]
    return config


def _fixed(deployment: dict[str, Any], count: int) -> dict[str, Any]:
    kept = {key: value for key, value in deployment.items() if key != "autoscaling_config"}
    options = {**kept["ray_actor_options"], "num_cpus": 0.1}
    options.pop("num_gpus", None)
    per_node = count // WORKERS
    return {
        **kept,
        "num_replicas": count,
        "max_replicas_per_node": per_node,
        "ray_actor_options": options,
    }


class LocalCluster:
    """A head without replicas, and workers, each with a proxy on a port of its own.

    It ends only processes that it has started.
    """

    def __init__(self, redis_password: str) -> None:
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "redis_password": redis_password,
                "include_dashboard": False,
            },
            shutdown_at_exit=False,  # with it, only the main thread may add nodes
        )
        self.head: Node = self._cluster.head_node
        self.head_port = free_port()
        self._workers: dict[int, Node] = {}
        """By the ports of their proxies, the oldest first."""

    @property
    def ports(self) -> list[int]:
        """Those of all proxies."""
        return [self.head_port, *self._workers]

    def add_worker(self) -> int:
        """Start a node, and return the port of its proxy."""
        port = free_port()
        node = self._cluster.add_node(
            num_cpus=4,
            resources={"front": 1},
            env_vars={"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port)},
        )
        self._workers[port] = node
        return port

    def connect(self) -> None:
        ray.init(
            address=self._cluster.address,
            _redis_password=self._cluster.redis_password,
            log_to_driver=False,
        )

    def deploy(self, config: dict[str, Any]) -> None:
        serve.start(http_options=config["http_options"], proxy_location=config["proxy_location"])
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)

    @property
    def victim(self) -> int:
        """The port of the worker that is killed next, or whose proxy is."""
        port, *_ = self._workers
        return port

    def kill_worker(self) -> None:
        """Kill a node and everything on it."""
        node = self._workers[self.victim]
        raylet = _raylet(node)
        for process in [raylet, *raylet.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        del self._workers[self.victim]

    def kill_proxy(self) -> None:
        self._kill(_find(_raylet(self._workers[self.victim]), PROXY))

    def kill_process(self, title: str) -> None:
        """Kill a process of any node, by the beginning of its title."""
        self._kill(_find(psutil.Process(), title))

    def kill_gcs(self) -> None:
        self.head.kill_gcs_server()

    def start_gcs(self) -> None:
        self.head.start_gcs_server()

    @staticmethod
    def _kill(processes: list[psutil.Process]) -> None:
        processes[0].kill()
        processes[0].wait(10)

    def wait_until_healthy(self, timeout_s: float = START_S) -> None:
        """Wait until every process is there again, and Serve says that all is well."""
        end = time.monotonic() + timeout_s
        fault = "nothing has been asked"
        while time.monotonic() < end:
            fault = self._find_fault()
            if not fault:
                return
            time.sleep(POLL_S)
        raise TimeoutError(f"not healthy after {timeout_s:g} s: {fault}")

    def _find_fault(self) -> str:
        """Return what is missing; nothing if the cluster is healthy."""
        wanted = {replica_of(name): count for name, count in REPLICAS.items()}
        wanted |= {CONTROLLER: 1, PROXY: len(self.ports)}
        found = Counter({title: len(_find(psutil.Process(), title)) for title in wanted})
        if found != wanted:
            return f"processes: {dict(found)}"
        try:
            status = serve.status()
        except Exception as error:
            return f"the controller: {error!r}"
        application = status.applications.get("raylens")
        if application is None or application.status != ApplicationStatus.RUNNING:
            return f"the application: {application}"
        for name, deployment in application.deployments.items():
            if deployment.status != DeploymentStatus.HEALTHY:
                return f"{name}: {deployment}"
        proxies = Counter(status.proxies.values())
        if proxies != {ProxyStatus.HEALTHY: len(self.ports)}:
            return f"proxies: {proxies}"
        return next((f"port {port}" for port in self.ports if not _answers(port)), "")

    def shutdown(self) -> None:
        """End everything that was started. Nothing may join the cluster by default any more."""
        address = self._cluster.address
        for close in (serve.shutdown, ray.shutdown, self._cluster.shutdown):
            with suppress(Exception):
                close()
        if read_ray_address() == address:
            reset_ray_address()


def _raylet(node: Node) -> psutil.Process:
    (info,) = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def _find(parent: psutil.Process, title: str) -> list[psutil.Process]:
    found = []
    for process in parent.children(recursive=True):
        with suppress(psutil.Error):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            if not is_zombie and " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found


def _answers(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=5).status_code == 200
    return False


@contextmanager
def running_redis(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a Redis of its own. Yields its address and its password."""
    port = free_port()
    password = secrets.token_hex(16)
    options = {"port": port, "bind": "127.0.0.1", "requirepass": password, "save": ""}
    command = ["redis-server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with (
        (folder / "redis.log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
    ):
        try:
            _wait_for_port(port, process)
            yield f"127.0.0.1:{port}", password
        finally:
            process.kill()


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("redis-server did not start")


@contextmanager
def running_cluster(folder: Path) -> Iterator[LocalCluster]:
    """Run the cluster with the application, until it is healthy."""
    with running_redis(folder) as (address, password):
        os.environ["RAY_REDIS_ADDRESS"] = address
        cluster = LocalCluster(password)
        try:
            for _ in range(WORKERS):
                cluster.add_worker()
            cluster.connect()
            cluster.deploy(settings(folder, cluster.head_port))
            cluster.wait_until_healthy()
            yield cluster
        finally:
            cluster.shutdown()
            del os.environ["RAY_REDIS_ADDRESS"]
