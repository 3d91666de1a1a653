"""Live video: how old are the frames that the answers are about, and does memory stay flat?

``python -m benchmarks.realtime`` shows 30 frames a second, over WebRTC and over a WebSocket, to a
model that takes 0.3 s; then eight WebRTC sessions at once. The limit of an age is twice the model's
time. ``--plot FILE`` draws the ages over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import websockets
import yaml

import benchmarks.ray_settings  # noqa: F401  first: Ray reads them when it is imported
from benchmarks.scaling.__main__ import deployed
from raylens.realtime.overlay import Pixels
from testing.webrtc_client import Client

MODEL = "timed"
MODEL_S = 0.3
BATCH = 16
SIZE = (320, 240)
SESSIONS = 8
SESSION_FPS = 10
FPS = 30
PROCESSES = ("Ingress", "Realtime", "Preprocessor", MODEL)
MEMORY_PERIOD_S = 5.0
MAX_GROWTH = 1.25
"""Of the median age of the last minute, over the first minute's."""
MAX_MEMORY_GROWTH = 1.1


@dataclass
class Ages:
    """The ages of one session's answers, in milliseconds, and when they came, in seconds."""

    name: str
    started_at: float = field(default_factory=time.monotonic)
    values: list[tuple[float, float]] = field(default_factory=list)
    frames: int = 0

    def add(self, age_ms: float) -> None:
        self.values.append((time.monotonic() - self.started_at, age_ms))

    def within(self, begin: float, end: float) -> list[float]:
        return [age for at, age in self.values if begin <= at < end]


def moving_square(number: int) -> Pixels:
    width, height = SIZE
    pixels = np.full((height, width, 3), 190, np.uint8)
    left = 10 + 2 * number % (width - 100)
    pixels[80:160, left : left + 80] = (40, 60, 220)
    return pixels


async def film(show: Callable[[Pixels], Any], fps: float, until: float, ages: Ages) -> None:
    """Show frames at a steady pace."""
    begun_at = time.monotonic()
    while (now := time.monotonic()) < until:
        show(moving_square(ages.frames))
        ages.frames += 1
        await asyncio.sleep(max(0.0, begun_at + ages.frames / fps - now))


async def watch_webrtc(url: str, name: str, fps: float, seconds: float) -> Ages:
    client = Client()
    async with httpx.AsyncClient(base_url=url, timeout=90) as http:
        parameters = {"feature": "caption", "inference_interval": 1}
        body = {"sdp": await client.offer(), "initialParameters": parameters}
        answer = (await http.post("/api/v1/webrtc/offer", json=body)).raise_for_status().json()
        await client.accept(answer["sdp"])
        await client.wait_connected()
        ages = Ages(name)
        channel = client.channels["results"]
        channel.on("message", lambda text: _note(ages, json.loads(text)))
        await film(client.camera.show, fps, time.monotonic() + seconds, ages)
        await http.delete(f"/api/v1/webrtc/offer/{answer['sessionId']}")
    await client.close()
    return ages


def _note(ages: Ages, message: dict[str, Any]) -> None:
    if message["type"] == "result":
        ages.add(message["timings"]["age_ms"])
    elif message["type"] == "error":
        raise RuntimeError(message["error"])


async def watch_web_socket(url: str, name: str, fps: float, seconds: float) -> Ages:
    address = url.replace("http", "ws") + "/api/v1/ws"
    async with websockets.connect(address, max_queue=None) as socket:
        ages = Ages(name)

        async def read() -> None:
            async for text in socket:
                message = json.loads(text)
                assert "error" not in message, message
                if "age_ms" in message:
                    ages.add(message["age_ms"])

        sending: set[asyncio.Task[None]] = set()

        def send(pixels: Pixels) -> None:
            _, data = cv2.imencode(".jpg", pixels[..., ::-1])
            task = asyncio.create_task(socket.send(data.tobytes()))
            sending.add(task)
            task.add_done_callback(sending.discard)

        reading = asyncio.create_task(read())
        await film(send, fps, time.monotonic() + seconds, ages)
        reading.cancel()
    return ages


class Memory:
    """The resident memory of the replicas, in MiB."""

    def __init__(self) -> None:
        self.samples: list[dict[str, float]] = []

    async def sample(self) -> None:
        while True:
            self.samples.append(_resident())
            await asyncio.sleep(MEMORY_PERIOD_S)


def _resident() -> dict[str, float]:
    sizes: dict[str, float] = {}
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        title = " ".join(process.info["cmdline"] or ())
        for name in PROCESSES:
            if title.startswith(f"ray::ServeReplica:raylens:{name}"):
                sizes[name] = sizes.get(name, 0.0) + process.info["memory_info"].rss / 2**20
    return sizes


@contextmanager
def server() -> Iterator[str]:
    config = yaml.safe_load(Path("serve_config.yaml").read_text())
    (application,) = config["applications"]
    application["import_path"] = "testing.timed_graph:build_timed_app"
    application["args"] = {
        "models": [
            {
                "name": MODEL,
                "family": "smolvlm",
                "checkpoint": str(MODEL_S),
                "max_batch_size": BATCH,
            }
        ],
        "jobs": {"enabled": False},
        "realtime": {"webrtc": {"max_sessions_per_client": SESSIONS}},
    }
    by_name = {deployment["name"]: deployment for deployment in application["deployments"]}
    model = {**by_name["smolvlm"], "name": MODEL, "ray_actor_options": {"num_cpus": 0.1}}
    application["deployments"] = [*(by_name[name] for name in PROCESSES[:-1]), model]
    with deployed(config, num_cpus=4) as url:
        yield url


async def run(url: str, minutes: float) -> tuple[list[Ages], list[Ages], Memory]:
    memory = Memory()
    sampling = asyncio.create_task(memory.sample())
    seconds = 60 * minutes
    alone = await asyncio.gather(
        watch_webrtc(url, "WebRTC", FPS, seconds), watch_web_socket(url, "WebSocket", FPS, seconds)
    )
    sampling.cancel()
    names = [f"session {number}" for number in range(1, SESSIONS + 1)]
    several = await asyncio.gather(
        *(watch_webrtc(url, name, SESSION_FPS, min(60.0, seconds)) for name in names)
    )
    return list(alone), list(several), memory


def summarize(ages: Ages, seconds: float) -> tuple[str, bool]:
    """Return a line about a session, and whether it met its limits."""
    values = [age for _, age in ages.values]
    *_, p99 = quantiles(values, n=100)
    part = min(60.0, seconds / 2)
    first = np.median(ages.within(0, part))
    last = np.median(ages.within(seconds - part, seconds))
    limit = 2000 * MODEL_S
    share = sum(age <= limit for age in values) / len(values)
    is_met = bool(p99 <= limit and last <= MAX_GROWTH * first)
    text = (
        f"{ages.name:10} {ages.frames:6} {len(values):7} {first:9.0f} {last:9.0f}"
        f" {p99:7.0f} {max(values):7.0f} {share:8.2%}"
    )
    return text, is_met


def plot(path: Path, alone: list[Ages], memory: Memory) -> None:
    import matplotlib.pyplot as plt

    figure, (ages_axis, memory_axis) = plt.subplots(2, 1, figsize=(9, 6), sharex=True)
    for ages in alone:
        ages_axis.plot(*zip(*ages.values, strict=True), linewidth=0.7, label=ages.name)
    ages_axis.axhline(2000 * MODEL_S, color="gray", linestyle="--", label="twice the model's time")
    ages_axis.set_ylabel("age of the frame, ms")
    ages_axis.set_ylim(0, 3000 * MODEL_S)
    ages_axis.legend(loc="upper right")
    for name in memory.samples[-1]:
        sizes = [sample.get(name, float("nan")) for sample in memory.samples]
        memory_axis.plot(np.arange(len(sizes)) * MEMORY_PERIOD_S, sizes, label=name)
    memory_axis.set_ylabel("memory, MiB")
    memory_axis.set_xlabel("seconds")
    memory_axis.set_ylim(0)
    memory_axis.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with server() as url:
        alone, several, memory = asyncio.run(run(url, options.minutes))
    print(f"The model takes {1000 * MODEL_S:.0f} ms. Ages in ms; the limit is twice that.")
    print("session    frames answers  first min  last min     p99     max   within")
    all_met = True
    for ages, seconds in (
        *((each, 60 * options.minutes) for each in alone),
        *((each, min(60.0, 60 * options.minutes)) for each in several),
    ):
        text, is_met = summarize(ages, seconds)
        print(text if is_met else f"{text}  missed")
        all_met = all_met and is_met
    settled = memory.samples[len(memory.samples) // 5 :]
    for name in settled[-1]:
        before, after = settled[0].get(name, 0.0), settled[-1][name]
        print(f"memory of {name}: {before:.0f} MiB, at the end {after:.0f} MiB")
        all_met = all_met and after <= MAX_MEMORY_GROWTH * before
    if options.plot is not None:
        plot(options.plot, alone, memory)
    return 0 if all_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
