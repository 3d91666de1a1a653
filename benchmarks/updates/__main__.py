"""Measure updates under load: changed settings, and then changed code.

``python -m benchmarks.updates`` sends 20 requests a second, some of them with pictures, some
streamed, and some that submit jobs, to a server with one replica of each deployment, whose model
answers after 20 ms. Its configuration is deployed again meanwhile:

- four times with other live settings, for which no replica is restarted, and
- once with other code, for which each replica is replaced.

The target: none of 2,000 requests fails in either part, and no job.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import copy
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from raylens.core.keys import hash_key
from testing.pictures import encode_picture, random_pixels
from testing.ports import free_port

MODEL = "timed"
WAITING = 112
SECONDS = 0.02
RATE = 20
"""Requests a second."""
JOB_EVERY = 20
"""One in so many requests submits a job."""
KEY, OTHER_KEY = "first-key-of-this-benchmark", "other-key-of-this-benchmark"
MODULE = "released_graph"
CODE = """
from typing import Any

from deployments.app import build_graph
from testing.timed_graph import TimedModel, TimedRuntime


class ReleasedRuntime(TimedRuntime):
    async def generate(self, request: Any, pictures: Any) -> Any:
        async for delta in super().generate(request, pictures):
            yield type(delta)(delta.text + " {release}", *list(vars(delta).values())[1:])


class ReleasedModel(TimedModel):
    runtime = ReleasedRuntime


def build(args: dict[str, Any]) -> Any:
    return build_graph(args, ReleasedModel)
"""


@dataclass
class Outcome:
    statuses: Counter[str] = field(default_factory=Counter)
    replicas: set[str] = field(default_factory=set)
    releases: set[str] = field(default_factory=set)
    slowest_s: float = 0.0
    jobs: list[str] = field(default_factory=list)
    failed_jobs: int = 0

    @property
    def failed(self) -> int:
        return self.statuses.total() - self.statuses["200"]


class Server:
    """A server whose configuration may be deployed again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = _config(free_port(), str(folder / "jobs"))
        self.url = f"http://127.0.0.1:{self.config['http_options']['port']}"

    def write_code(self, release: int) -> None:
        (self._folder / f"{MODULE}.py").write_text(CODE.replace("{release}", f"release{release}"))

    def deploy(self, live: Mapping[str, Any] | None = None, release: int = 1) -> None:
        """Deploy, and return once the application is up to date."""
        config = copy.deepcopy(self.config)
        (application,) = config["applications"]
        application["runtime_env"] = {"env_vars": {"RELEASE": str(release)}}
        for deployment in application["deployments"]:
            deployment["user_config"] = dict(live or {})
        schema = ServeDeploySchema.model_validate(config)
        _get_global_client().deploy_apps(schema, _blocking=True)


def _config(port: int, folder: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(Path("serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["import_path"] = f"{MODULE}:build"
    model = {
        "name": MODEL,
        "family": "smolvlm",
        "checkpoint": str(SECONDS),
        "max_batch_size": 8,
        # New replicas take both cores while they start, for seconds. That is no matter of updates.
        "max_waiting": WAITING,
    }
    application["args"] = {
        "models": [model],
        "jobs": {"data_dir": folder, "capacity": 1000},
        "dialect_models": {"jobs": MODEL},
        "auth": {"keys": [{"name": "first", "hash": hash_key(KEY)}]},
    }
    by_name = {deployment["name"]: deployment for deployment in application["deployments"]}
    model_deployment = {
        **by_name["smolvlm"],
        "name": MODEL,
        "max_ongoing_requests": 2 * WAITING,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    application["deployments"] = [by_name["Ingress"], by_name["Preprocessor"], model_deployment]
    return config


@contextmanager
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] += os.pathsep + folder
        sys.path.insert(0, folder)
        started = Server(Path(folder))
        started.write_code(1)
        ray.init(address="local", num_cpus=4, log_to_driver=False, include_dashboard=False)
        serve.start(http_options=started.config["http_options"])
        try:
            started.deploy()
            yield started
        finally:
            serve.shutdown()
            ray.shutdown()
            sys.path.remove(folder)


async def send_load(url: str, requests: int, outcome: Outcome) -> None:
    """Send ``RATE`` requests a second, whether or not earlier ones have been answered."""
    limits = httpx.Limits(max_connections=256)
    picture = base64.b64encode(encode_picture(random_pixels(64, 64, 0))).decode()
    image_url = f"data:image/png;base64,{picture}"
    async with httpx.AsyncClient(
        base_url=url, timeout=60, limits=limits, headers={"Authorization": f"Bearer {KEY}"}
    ) as http:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(requests):
                await asyncio.sleep(max(0, started + number / RATE - time.perf_counter()))
                if number % JOB_EVERY == 0:
                    tasks.create_task(_submit(http, image_url, outcome))
                else:
                    tasks.create_task(_ask(http, number, image_url, outcome))
        outcome.failed_jobs += await _count_failed_jobs(http, outcome)


async def _submit(http: httpx.AsyncClient, image_url: str, outcome: Outcome) -> None:
    body = {"job_type": "caption", "input": {"image": image_url}}
    try:
        response = await http.post("/api/v1/jobs", json=body)
    except httpx.HTTPError as error:
        outcome.statuses[repr(error)] += 1
        return
    accepted = response.status_code == 202
    outcome.statuses["200" if accepted else f"{response.status_code} {response.text[:300]}"] += 1
    if accepted:
        outcome.jobs.append(response.json()["id"])


async def _count_failed_jobs(http: httpx.AsyncClient, outcome: Outcome) -> int:
    """Wait for all jobs, and return how many have not succeeded."""
    failed = 0
    for job_id in outcome.jobs:
        async with asyncio.timeout(120):
            while True:
                job = (await http.get(f"/api/v1/jobs/{job_id}")).json()
                if job.get("status") in ("succeeded", "failed", "canceled"):
                    break
                await asyncio.sleep(0.2)
        failed += job["status"] != "succeeded"
    return failed


async def _ask(http: httpx.AsyncClient, number: int, image_url: str, outcome: Outcome) -> None:
    body: dict[str, Any] = {"model": MODEL, "question": "what is it?"}
    if number % 2:
        body["image_url"] = image_url
    if number % 4 == 0:
        body["stream"] = True
    started = time.perf_counter()
    try:
        response = await http.post("/v1/query", json=body)
    except httpx.HTTPError as error:
        outcome.statuses[repr(error)] += 1
        return
    outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - started)
    is_whole = response.status_code == 200 and "error" not in response.text
    outcome.statuses["200" if is_whole else f"{response.status_code} {response.text[:300]}"] += 1
    if is_whole and "stream" not in body:
        replica, _, release = response.json()["answer"].split()
        outcome.replicas.add(replica)
        outcome.releases.add(release)


def _post(url: str, key: str = KEY, **body: Any) -> httpx.Response:
    body = {"model": MODEL, "question": "what is it?", **body}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/query", json=body, headers=headers, timeout=30)


async def _wait_for(is_in_force: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(is_in_force):
            await asyncio.sleep(0.1)


async def change_settings(running: Server, pause_s: float) -> None:
    """Deploy other settings four times, and wait until each is in force."""
    live: dict[str, Any] = {}

    async def deploy(what: str, is_in_force: Callable[[], bool] = lambda: True) -> None:
        await asyncio.sleep(pause_s)
        started = time.perf_counter()
        await asyncio.to_thread(running.deploy, live)
        await _wait_for(is_in_force)
        print(f"{what}: {time.perf_counter() - started:.1f} s")

    def has_limit() -> bool:
        response = _post(running.url, settings={"max_tokens": 300})
        return "the limit is 256" in response.text

    def knows_other_key() -> bool:
        return _post(running.url, OTHER_KEY).is_success

    assert not has_limit()
    assert not knows_other_key()
    live["limits"] = {"max_tokens": 256}
    live["defaults"] = {"max_tokens": 128}
    await deploy("a limit is in force after", has_limit)
    keys = [{"name": key[:5], "hash": hash_key(key)} for key in (KEY, OTHER_KEY)]
    live["auth"] = {"keys": keys}
    await deploy("a key is in force after", knows_other_key)
    live["defaults"] |= {"recipe": "plain", "temperature": 0.5}
    await deploy("another recipe and temperature were deployed after")
    live["models"] = {MODEL: {"max_batch_size": 16, "max_waiting": WAITING}}
    await deploy("a larger batch was deployed after")


async def update_settings(running: Server, requests: int) -> Outcome:
    outcome = Outcome()
    seconds = requests / RATE
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_load(running.url, requests, outcome))
        tasks.create_task(change_settings(running, seconds / 6))
    return outcome


async def update_code(running: Server, requests: int) -> Outcome:
    outcome = Outcome()

    async def deploy() -> None:
        await asyncio.sleep(requests / RATE / 5)
        running.write_code(2)
        started = time.perf_counter()
        await asyncio.to_thread(running.deploy, {}, 2)
        print(f"other code: in force after {time.perf_counter() - started:.1f} s")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(send_load(running.url, requests, outcome))
        tasks.create_task(deploy())
    return outcome


def report(name: str, outcome: Outcome) -> None:
    print(
        f"{name}: {outcome.failed} of {outcome.statuses.total()} requests failed; the slowest took"
        f" {outcome.slowest_s:.2f} s; answered by {len(outcome.replicas)} replicas, of"
        f" {', '.join(sorted(outcome.releases))}; {outcome.failed_jobs} of {len(outcome.jobs)} jobs"
        " failed",
        flush=True,
    )
    for status, count in outcome.statuses.items():
        if status != "200":
            print(f"  {count} × {status}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, help="of each part")
    parser.add_argument("--part", choices=["settings", "code"], help="only this one")
    arguments = parser.parse_args()
    is_met = True
    with server() as running:
        if arguments.part != "code":
            outcome = asyncio.run(update_settings(running, arguments.requests))
            report("changed settings", outcome)
            is_met &= not outcome.failed + outcome.failed_jobs and len(outcome.replicas) == 1
        if arguments.part != "settings":
            outcome = asyncio.run(update_code(running, arguments.requests))
            report("changed code", outcome)
            is_met &= not outcome.failed + outcome.failed_jobs
            is_met &= outcome.releases == {"release1", "release2"}
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
