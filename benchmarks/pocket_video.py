"""Measure how often a pocket model's answers about drawn videos are exact, over HTTP.

``python -m benchmarks.pocket_video`` draws videos in which shapes appear and move, encodes each as
MP4 or WebM, or sends it as frames, and asks all questions about it. It prints the share of exact
answers with its 95% Wilson interval. The baseline is a model that always gives the most frequent
answer to that question.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np

from benchmarks.pocket import EXAMPLES, TextScores, TextTrial
from benchmarks.target import target
from models.pocket.drawing import draw, encode
from models.pocket.video_files import FAST_VP9, Pixels, encode_video
from models.pocket.videos import VideoScene, random_video

TARGET = 0.90
"""Minimum share of exact answers over all questions."""
IN_FLIGHT = 8


def draw_frame(video: VideoScene, second: float, seed: int) -> Pixels:
    """Draw the frame of a time as all others of its video; its sides are even."""
    pixels = draw(video.at(second), random.Random(seed))
    height, width = (side - side % 2 for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[:height, :width])


def video_part(video: VideoScene, rng: random.Random) -> dict[str, Any]:
    """Return a video as a part of a message: a file, or frames."""
    seed = rng.getrandbits(32)
    form = rng.choice(("mp4", "mp4", "webm", "frames"))
    if form == "frames":
        count = 2 * round(video.seconds)
        times = [video.seconds * number / (count - 1) for number in range(count)]
        files = [encode(draw_frame(video, time, seed), rng) for time in times]
        urls = [f"data:{kind};base64,{base64.b64encode(data).decode()}" for data, kind in files]
        return {"type": "video", "video": urls, "fps": count / video.seconds}
    rate = rng.randint(8, 30)
    frames = [
        draw_frame(video, number / rate, seed) for number in range(round(video.seconds * rate))
    ]
    codec = "libx264" if form == "mp4" else "libvpx-vp9"
    options = FAST_VP9 if form == "webm" else {}
    data = base64.b64encode(encode_video(frames, rate, codec, form, options)).decode()
    return {"type": "video_url", "video_url": {"url": f"data:video/{form};base64,{data}"}}


def video_trials(video: VideoScene, rng: random.Random, model: str) -> Iterator[TextTrial]:
    """Yield one trial for each question about a video."""
    part = video_part(video, rng)
    for question in video.questions():
        parts = [part, {"type": "text", "text": question.text}]
        content = parts if rng.random() < 0.75 else parts[::-1]
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        path = "/v1/chat/completions"
        yield TextTrial(f"video: {question.category}", path, body, question.answer)


async def run(url: str, model: str, videos: int, seed: int) -> int:
    """Print the table. Returns the exit status: 0 if the target is met."""
    scores = TextScores()
    slots = asyncio.Semaphore(IN_FLIGHT)
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def send(trial: TextTrial) -> None:
            async with slots:
                response = await client.post(trial.path, json=trial.body)
            scores.add(trial, response.raise_for_status().json())

        for _ in range(videos):
            await asyncio.gather(*map(send, video_trials(random_video(rng), rng, model)))
    for line in scores.wrong[:EXAMPLES]:
        print(line, file=sys.stderr)
    total = sum(answers.total() for answers in scores.expected.values())
    share = scores.exact.total() / total
    print(f"\n{model}, {videos} videos: {share:.1%} of {total} answers exact\n")
    print(*scores.table(), sep="\n")
    return 0 if share >= TARGET else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=None, help="measure the server at this URL")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--seed", type=int, default=30_000)
    parser.add_argument("--model", default="qwen2.5-vl")
    arguments = parser.parse_args()
    with target(arguments.url) as url:
        status = asyncio.run(run(url, arguments.model, arguments.videos, arguments.seed))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
