"""What the server would tell of its processes after a quarter of an hour of work."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

from raylens.status import metrics as m
from raylens.status.history import Key, Moment
from raylens.status.ports import DeploymentState, StatusSource
from raylens.status.report import Report, make_report

PERIOD_S = 10
BUCKETS = ("0.25", "0.5", "1.0", "2.5", "+Inf")
GIB = 2.0**30


def replicas(running: int, target: int = 1, **changes: object) -> DeploymentState:
    starting = target - running
    state = DeploymentState(
        status="HEALTHY",
        message="",
        target=target,
        running=running,
        starting=starting,
        starting_s=5.0 if starting else None,
        stopping=0,
        resources={"CPU": 1.0},
    )
    return replace(state, **changes)  # type: ignore[arg-type]


def busy_moments(count: int, now: float) -> list[Moment]:
    """Return moments of a server whose load comes and goes."""
    counts: dict[Key, float] = {}
    moments = []
    for i in range(count):
        wave = 1 + math.sin(i / 7)
        _count(counts, wave, has_error=i % 20 == 7)
        moments.append(Moment(now - (count - 1 - i) * PERIOD_S, 1, 1, dict(counts), _gauges(wave)))
    return moments


def _count(counts: dict[Key, float], wave: float, has_error: bool) -> None:
    requests = round(12 * wave)
    added: dict[Key, float] = {
        (m.REQUESTS, "moondream", "200"): requests,
        (m.REQUESTS, "moondream", "500"): has_error,
        (m.REQUESTS, "none", "400"): has_error,
        (m.HTTP_TOKENS, "moondream", "answer"): 22 * requests,
        (m.HTTP_TOKENS, "moondream", "prompt"): 740 * requests,
        (m.CACHE_HITS, "moondream", "features"): requests // 2,
        (m.CACHE_MISSES, "moondream", "features"): requests - requests // 2,
        (m.CACHE_HITS, "moondream", "prefix"): 300 * requests,
        (m.CACHE_MISSES, "moondream", "prefix"): 440 * requests,
        (m.JOBS_ENDED, "succeeded"): round(2 * wave),
        (m.BATCH_SIZE, "moondream", "1.0"): 100,
        (m.BATCH_SIZE, "moondream", "4.0"): 100 + 80 * wave,
    }
    for share, bound in zip((0.3, 0.75, 0.96, 1, 1), BUCKETS, strict=True):
        added[m.SECONDS, "moondream", bound] = share * requests
        added[m.FIRST_TOKEN_SECONDS, "moondream", bound] = min(1, 2 * share) * requests
    for key, value in added.items():
        counts[key] = counts.get(key, 0.0) + value


def _gauges(wave: float) -> dict[Key, float]:
    return {
        (m.WAITING, "moondream"): round(3 * max(0, wave - 1.2)),
        (m.RUNNING, "moondream"): round(4 * wave),
        (m.LOAD, "moondream"): wave / 2,
        (m.KV_BYTES, "moondream"): 0.3 * wave * GIB,
        (m.KV_LIMIT_BYTES, "moondream"): GIB,
        (m.MEMORY_BYTES, "moondream", "allocated"): 0.9 * GIB,
        (m.CALLS, "Ingress"): round(5 * wave),
        (m.PICTURES_WAITING,): round(wave),
        (m.SESSIONS,): 1,
        (m.JOBS, "queued"): round(9 * wave),
        (m.JOBS, "running"): 2,
        (m.JOBS, "failed"): 3,
        (m.JOBS_WAIT_SECONDS,): 4 * wave,
    }


@dataclass
class ScriptedStatus(StatusSource):
    moments: list[Moment] = field(default_factory=lambda: busy_moments(90, time.time()))
    states: dict[str, DeploymentState] | None = field(
        default_factory=lambda: {
            "Ingress": replicas(1),
            "Preprocessor": replicas(2, 2),
            "Realtime": replicas(0, 0),
            "moondream": replicas(1, resources={"CPU": 1.0, "GPU": 0.25}),
            "smolvlm": replicas(1),
        }
    )
    has_history: bool = True
    asked: int = 0

    async def deployments(self) -> dict[str, DeploymentState] | None:
        self.asked += 1
        return self.states

    async def report(self) -> Report | None:
        return make_report(self.moments, ("moondream", "smolvlm")) if self.has_history else None

    async def ray_dashboard(self) -> str | None:
        return "127.0.0.1:8265"

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]
