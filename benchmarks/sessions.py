"""Measure how much of a core a WebRTC session takes, without its model.

``python -m benchmarks.sessions`` runs one session after another, with video of several sizes and
rates, between two processes: the session's, whose CPU time is measured, and its client's. A model
that takes 0.3 s finds three shapes in a noisy, textured video; they are tracked and drawn on each
frame. Frames are decoded and encoded as VP8, or as ``--codec H264``.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import psutil

from raylens.core.webrtc_config import WebRtcConfig
from raylens.realtime.frames import Frame, FrameProcessor, Report
from raylens.realtime.live_session import LiveSession, ModelAnswer
from raylens.realtime.overlay import Pixels
from raylens.realtime.pipeline import FrameResult
from raylens.realtime.settings import MoondreamConfig
from raylens.realtime.webrtc.sessions import Sessions
from testing.moving_shapes import ShapeVideo
from testing.shape_videos import FRAMES, VIDEOS
from testing.webrtc_client import LOOPBACK, Client

SIZES = ((320, 240), (640, 480), (1280, 720))
RATES = (10, 30)
SECONDS = 10.0
WARM_UP_S = 3.0
MODEL_S = 0.3
NOISE = 3
"""Levels, as of a camera in good light."""
THREADS = 4
"""As in the deployment."""
SETTINGS = MoondreamConfig(inference_interval=1)


@dataclass(frozen=True)
class Cost:
    """What one session took."""

    processed: int
    seconds: float
    cpu_s: float

    @property
    def fps(self) -> float:
        return self.processed / self.seconds

    @property
    def frame_ms(self) -> float:
        return 1000 * self.cpu_s / max(1, self.processed)


def make_video(width: int, height: int) -> ShapeVideo:
    return replace(VIDEOS["all textured"], width=width, height=height, noise=NOISE)


def serve(pipe: Connection, width: int, height: int) -> None:
    """Be the process of the session: answer offers, and say how many frames there were."""
    asyncio.run(_serve(pipe, make_video(width, height)))


async def _serve(pipe: Connection, video: ShapeVideo) -> None:
    loop = asyncio.get_running_loop()
    sessions = Sessions("here", WebRtcConfig(), LOOPBACK)
    threads = ThreadPoolExecutor(THREADS)

    async def ask(frames: Sequence[Frame], settings: MoondreamConfig) -> ModelAnswer:
        await asyncio.sleep(MODEL_S)
        boxes = video.boxes(frames[-1].id % FRAMES).values()
        return ModelAnswer(FrameResult(regions=tuple(boxes)))

    def open_processor(parameters: Mapping[str, Any], report: Report) -> FrameProcessor:
        return LiveSession(ask, SETTINGS, report, threads)

    with suppress(EOFError):
        while True:
            offer = await loop.run_in_executor(None, pipe.recv)
            if offer is None:
                (state,) = sessions.states
                pipe.send(state.frames.processed)
            else:
                _, answer = await sessions.open(offer, "offer", {}, "me", open_processor)
                pipe.send(answer)
    await sessions.close_all("the measurement is over")


def measure(width: int, height: int, fps: int, codec: str) -> Cost:
    """Run one session."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, width, height), daemon=True)
    process.start()
    other.close()
    video = make_video(width, height)
    frames = [video.draw(number) for number in range(FRAMES)]
    try:
        return asyncio.run(_measure(pipe, psutil.Process(process.pid), frames, fps, codec))
    finally:
        pipe.close()
        process.join()


async def _measure(
    pipe: Connection, process: psutil.Process, frames: list[Pixels], fps: int, codec: str
) -> Cost:
    client = Client(codec=codec)
    pipe.send(await client.offer())
    await client.accept(await asyncio.to_thread(pipe.recv))
    await client.wait_connected()
    filming = asyncio.create_task(_film(client, frames, fps))
    await asyncio.sleep(WARM_UP_S)
    first, first_cpu_s, started_at = _processed(pipe), _cpu_s(process), time.monotonic()
    await asyncio.sleep(SECONDS)
    last, last_cpu_s, ended_at = _processed(pipe), _cpu_s(process), time.monotonic()
    filming.cancel()
    await client.close()
    return Cost(last - first, ended_at - started_at, last_cpu_s - first_cpu_s)


async def _film(client: Client, frames: list[Pixels], fps: int) -> None:
    started_at = time.monotonic()
    number = 0
    while True:
        client.camera.show(frames[number % len(frames)], ticks=90_000 // fps)
        number += 1
        await asyncio.sleep(max(0.0, started_at + number / fps - time.monotonic()))


def _processed(pipe: Connection) -> int:
    pipe.send(None)
    return int(pipe.recv())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def run(sizes: Iterable[tuple[int, int]], codec: str) -> None:
    print(f"{codec}; a session's process, without the model\n")
    print("size        frames/s  processed/s  ms of CPU a frame  cores  sessions a core")
    for width, height in sizes:
        for fps in RATES:
            cost = measure(width, height, fps, codec)
            cores = fps * cost.frame_ms / 1000
            print(
                f"{f'{width}×{height}':11} {fps:8} {cost.fps:12.1f} {cost.frame_ms:18.1f}"
                f" {cores:6.2f} {1 / cores:16.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec", choices=("VP8", "H264"), default="VP8")
    run(SIZES, parser.parse_args().codec)


if __name__ == "__main__":
    main()
