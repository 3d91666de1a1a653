"""Drains a node of a cluster under load, and prints what became of the requests as JSON.

``python -m tests.drain_node FOLDER`` runs it in a process of its own, because Ray reads its
settings from the environment when it is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from deployments.node_drain import count_actors
from testing.ports import free_port
from testing.timed_graph import build_timed_app

MODEL = "timed"
SECONDS = 0.5
JOBS = 60
"""They run one after another, so that the last one's events last for longer than the drain."""
RATE = 20.0
"""Requests a second."""
PROBE_PERIOD_S = 0.5
SETTLE_S = 3.0
RAYLENS = str(Path(sys.executable).with_name("raylens"))


def settings(folder: Path) -> dict[str, Any]:
    model = {
        "name": MODEL,
        "family": "smolvlm",
        "checkpoint": str(SECONDS),
        "max_batch_size": 32,
        "max_waiting": 64,
    }
    jobs = {"data_dir": str(folder), "workers": 1, "capacity": JOBS + 1}
    return {"models": [model], "jobs": jobs, "defaults": {"max_timeout_s": 30, "timeout_s": 30}}


class Nodes:
    """A head without replicas, and three workers whose proxies have ports of their own."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.ports: dict[str, int] = {}
        """Of the proxies, by node."""
        self.workers: dict[str, Any] = {}
        for _ in range(3):
            port = free_port()
            variables = {"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port)}
            worker = self.cluster.add_node(num_cpus=4, env_vars=variables)
            self.ports[worker.node_id] = port
            self.workers[worker.node_id] = worker

    def deploy(self, folder: Path) -> None:
        ray.init(address=self.cluster.address, log_to_driver=False)
        options = {"host": "127.0.0.1", "port": free_port()}
        serve.start(http_options=options, proxy_location="EveryNode")
        app = build_timed_app(settings(folder))
        serve.run(app, name="raylens")
        for name in (MODEL, "Ingress", "Preprocessor"):
            assert name in serve.status().applications["raylens"].deployments


def replicas_of(node: str) -> list[str]:
    """Return the deployments of the replicas on a node."""
    (app,) = _get_global_client().get_serve_details()["applications"].values()
    return [
        name
        for name, deployment in app["deployments"].items()
        for replica in deployment["replicas"]
        if replica.get("node_id") == node
    ]


class LoadBalancer:
    """Knows the proxies that say that they are healthy."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._turn = 0
        self.healthy: list[int] = []

    async def probe(self) -> None:
        async with httpx.AsyncClient(timeout=2) as client:
            while True:
                self.healthy = [port for port in self._ports if await self._answers(client, port)]
                await asyncio.sleep(PROBE_PERIOD_S)

    @staticmethod
    async def _answers(client: httpx.AsyncClient, port: int) -> bool:
        with suppress(httpx.HTTPError):
            return (await client.get(f"http://127.0.0.1:{port}/-/healthz")).status_code == 200
        return False

    def choose(self) -> str:
        self._turn += 1
        return f"http://127.0.0.1:{self.healthy[self._turn % len(self.healthy)]}"


async def ask(balancer: LoadBalancer, outcomes: Counter[str]) -> None:
    outcome = "200"
    try:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"model": MODEL, "question": "what is it?"}
            response = await client.post(f"{balancer.choose()}/v1/query", json=body)
            if response.status_code != 200:
                outcome = f"{response.status_code} {response.text[:200]}"
    except httpx.HTTPError as error:
        outcome = repr(error)
    outcomes[outcome] += 1


async def load(balancer: LoadBalancer, outcomes: Counter[str], must_end: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        while not must_end.is_set():
            group.create_task(ask(balancer, outcomes))
            await asyncio.sleep(1 / RATE)


async def follow(first: int, balancer: LoadBalancer, job_id: str) -> list[str]:
    """Follow a job as an EventSource does, first through one proxy. Returns ``retry`` for each
    handover, an error's name for each other break, and the states."""
    seen: list[str] = []
    last_id = ""
    base = f"http://127.0.0.1:{first}"
    async with httpx.AsyncClient(timeout=60) as client:
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            url = f"{base}/api/v1/jobs/{job_id}/events"
            wait_s = 0.0
            try:
                async with client.stream("GET", url, headers=headers) as response:
                    if response.status_code == 204:
                        return seen
                    async for line in response.aiter_lines():
                        name, _, value = line.partition(": ")
                        if name == "data":
                            seen.append(json.loads(value)["status"])
                        elif name == "id":
                            last_id = value
                        elif name == "retry":
                            seen.append("retry")
                            wait_s = int(value) / 1000
            except httpx.HTTPError as error:
                seen.append(type(error).__name__)
            await asyncio.sleep(wait_s)
            base = balancer.choose()


async def drain(address: str, node: str) -> tuple[int, str]:
    command = [RAYLENS, "drain", "--address", address, "--node", node[:16], "--timeout", "100"]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def run(nodes: Nodes) -> dict[str, Any]:
    victim = max(nodes.ports, key=lambda node: ("Ingress" in replicas_of(node), count_actors(node)))
    moved = replicas_of(victim)
    actors = count_actors(victim)
    balancer = LoadBalancer(list(nodes.ports.values()))
    probing = asyncio.create_task(balancer.probe())
    while victim not in nodes.ports or nodes.ports[victim] not in balancer.healthy:
        await asyncio.sleep(0.1)
    outcomes: Counter[str] = Counter()
    must_end = asyncio.Event()
    async with httpx.AsyncClient(timeout=60) as client:
        body = {"job_type": "query", "input": {"question": "what is it?"}}
        for _ in range(JOBS):
            job = await client.post(f"{balancer.choose()}/api/v1/jobs", json=body)
            job_id = job.raise_for_status().json()["id"]
    loading = asyncio.create_task(load(balancer, outcomes, must_end))
    following = asyncio.create_task(follow(nodes.ports[victim], balancer, job_id))
    await asyncio.sleep(SETTLE_S)
    begun_at = time.monotonic()
    status, output = await drain(nodes.cluster.address, victim)
    seconds = time.monotonic() - begun_at
    left = replicas_of(victim)
    ended = await asyncio.to_thread(has_ended, nodes.workers[victim])
    nodes.cluster.remove_node(nodes.workers[victim])
    await asyncio.sleep(SETTLE_S)
    must_end.set()
    await loading
    seen = await asyncio.wait_for(following, 120)
    probing.cancel()
    return {
        "moved": moved,
        "actors": actors,
        "left": left,
        "status": status,
        "output": re.sub(r"\x1b\[[0-9;]*m", "", output),
        "seconds": round(seconds, 1),
        "outcomes": outcomes,
        "events": seen,
        "node_ended": ended,
    }


def has_ended(worker: Any) -> bool:
    """Return whether the raylet of a node has ended by itself."""
    (raylet,) = worker.all_processes["raylet"]
    with suppress(subprocess.TimeoutExpired):
        raylet.process.wait(10)
        return True
    return False


def main() -> None:
    nodes = Nodes()
    try:
        nodes.deploy(Path(sys.argv[1]))
        print(json.dumps(asyncio.run(run(nodes))), flush=True)
    finally:
        with suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        nodes.cluster.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
