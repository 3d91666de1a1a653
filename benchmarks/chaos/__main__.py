"""Kill one part of a cluster after the other under load, and count what became of the requests.

``python -m benchmarks.chaos`` starts Redis, a head and two workers on this machine, and the real
graph with a model that answers after a fixed time. Clients send plain and streamed requests to the
proxies of all nodes, and submit jobs. Meanwhile these are killed with SIGKILL, each in turn: a
worker node, a proxy, a replica of the model, of the ingress and of the preprocessor, Serve's
controller, and Ray's GCS, which is started again. The targets:

- Each request is answered, or gets a 503 in its dialect's format with Retry-After. Excepted are
  connections that died with their proxy or node, and streams that had begun; these must end with
  an error event.
- Each accepted job succeeds, once.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos import environment  # noqa: F401 (before Ray)
from benchmarks.chaos.cluster import (
    CONTROLLER,
    MODEL,
    LocalCluster,
    replica_of,
    running_cluster,
)
from benchmarks.chaos.jobs import Jobs, receiving
from benchmarks.chaos.load import Load, Outcome, Proxies, Result, count

REQUESTS = 2000
JOBS = 200
FIRST = 20
"""Requests that are answered before a kill."""
BURSTS_S = (0.2, 0.4, 0.6)
"""From the beginning of a burst to the kill."""
AWAY_S = 3.0
"""From the death of a node or of the GCS until it is replaced."""
MISSES = (Outcome.BROKEN, Outcome.FAILED)


def kill_node(cluster: LocalCluster) -> None:
    cluster.kill_worker()
    time.sleep(AWAY_S)
    cluster.add_worker()


def kill_gcs(cluster: LocalCluster) -> None:
    cluster.kill_gcs()
    time.sleep(AWAY_S)
    cluster.start_gcs()


def killer_of(title: str) -> Callable[[LocalCluster], None]:
    return lambda cluster: cluster.kill_process(title)


@dataclass(frozen=True)
class Part:
    kill: Callable[[LocalCluster], None]
    times: int = 1
    """How often it is killed, each time at another moment of the burst's work."""
    has_proxy: bool = False
    """Whether the proxy of a worker dies with it."""


PARTS = {
    "worker node": Part(kill_node, has_proxy=True),
    "proxy": Part(LocalCluster.kill_proxy, has_proxy=True),
    "model replica": Part(killer_of(replica_of(MODEL)), 3),
    "ingress replica": Part(killer_of(replica_of("Ingress")), 3),
    "preprocessor replica": Part(killer_of(replica_of("Preprocessor")), 3),
    "controller": Part(killer_of(CONTROLLER)),
    "GCS": Part(kill_gcs),
}


@dataclass(frozen=True)
class Phase:
    """One kill."""

    name: str
    results: list[Result]
    recovery_s: float

    @property
    def misses(self) -> list[Result]:
        return [result for result in self.results if result.outcome in MISSES]


class Chaos:
    """The kills, the requests and the jobs, over a running cluster."""

    def __init__(self, cluster: LocalCluster, load: Load, jobs: Jobs, proxies: Proxies) -> None:
        self._cluster = cluster
        self._load = load
        self._jobs = jobs
        self._proxies = proxies

    async def run(self, name: str, requests: int, jobs: range) -> Phase:
        """Kill one part. The load goes on until the cluster is healthy, and there are so many
        answers."""
        part = PARTS[name]
        self._load.start()
        await self._load.wait_for(FIRST)
        submitting = asyncio.create_task(self._jobs.submit_all(jobs))
        recoveries = [await self._kill(part, BURSTS_S[turn]) for turn in range(part.times)]
        await self._load.wait_for(requests)
        results = await self._load.stop()
        await submitting
        return Phase(name, results, max(recoveries))

    async def _kill(self, part: Part, burst_s: float) -> float:
        """Kill a part in the middle of a burst. Returns the seconds until all is well again."""
        self._proxies.killed = {self._cluster.victim} if part.has_proxy else set()
        self._load.burst()
        await asyncio.sleep(burst_s)
        killed_at = time.perf_counter()
        await asyncio.to_thread(part.kill, self._cluster)
        await asyncio.to_thread(self._cluster.wait_until_healthy)
        return time.perf_counter() - killed_at


def print_table(phases: Sequence[Phase]) -> None:
    columns = ["killed", "requests", *(outcome.value for outcome in Outcome)]
    columns += ["slowest, s", "healthy after, s"]
    print("\n|", " | ".join(columns), "|")
    print("|", " | ".join("---" for _ in columns), "|")
    for phase in phases:
        outcomes = count(phase.results)
        slowest = max(result.seconds for result in phase.results)
        cells = [phase.name, len(phase.results), *(outcomes[outcome] for outcome in Outcome)]
        cells += [f"{slowest:.1f}", f"{phase.recovery_s:.0f}"]
        print("|", " | ".join(map(str, cells)), "|")


def print_jobs(ended: list[dict[str, Any]], jobs: Jobs) -> None:
    states = dict(Counter(job["status"] for job in ended))
    more = sum(job["attempts"] > 1 for job in ended)
    tries = {outcome.value: times for outcome, times in jobs.tries.items()}
    print(f"\n{len(ended)} jobs: {states}, {more} after more than one attempt")
    print(f"their submissions: {tries}")


def print_reasons(phases: Sequence[Phase], jobs: Jobs) -> None:
    for phase in phases:
        reasons = Counter(
            (result.outcome.value, result.reason) for result in phase.results if result.reason
        )
        for (outcome, reason), times in reasons.most_common(8):
            print(f"- {phase.name}: {times} × {outcome}: {reason}")
    for reason, times in jobs.reasons.items():
        print(f"- submission of a job: {times} × {reason}")


async def wreak(
    cluster: LocalCluster, names: Sequence[str], requests: int, jobs: int
) -> tuple[list[Phase], list[str]]:
    """Kill each part. Returns what became of the requests, and what is wrong with the jobs."""
    proxies = Proxies(lambda: cluster.ports)
    load = Load(MODEL, proxies)
    quota, share = math.ceil(requests / len(names)), math.ceil(jobs / len(names))
    phases = []
    with receiving() as endings:
        submissions = Jobs(proxies, endings)
        chaos = Chaos(cluster, load, submissions, proxies)
        for index, name in enumerate(names):
            numbers = range(index * share, min(jobs, (index + 1) * share))
            print(f"{name} …", flush=True)  # Ray prints of what has died, too
            phases.append(await chaos.run(name, quota, numbers))
        ended = await submissions.wait_until_ended(jobs)
    print_table(phases)
    print_jobs(ended, submissions)
    print_reasons(phases, submissions)
    await submissions.close()
    await load.close()
    return phases, submissions.find_faults(ended)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kill", action="append", choices=PARTS, help="one part only; repeatable")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="in all")
    parser.add_argument("--jobs", type=int, default=JOBS, help="in all")
    arguments = parser.parse_args()
    names = arguments.kill or list(PARTS)
    with (
        tempfile.TemporaryDirectory(prefix="raylens-") as folder,
        running_cluster(Path(folder)) as cluster,
    ):
        phases, faults = asyncio.run(wreak(cluster, names, arguments.requests, arguments.jobs))
    misses = sum(len(phase.misses) for phase in phases)
    total = sum(len(phase.results) for phase in phases)
    print(f"\n{misses} of {total} requests failed", *faults, sep="\n")
    sys.exit(1 if misses or faults else 0)


if __name__ == "__main__":
    main()
