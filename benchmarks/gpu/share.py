"""One process with a share of the card: ``python -m benchmarks.gpu.share``, for
:mod:`benchmarks.gpu.shares`.

It says ``ready`` once its model is loaded, begins when it is told a line, and ends with a line of
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass

import torch

from benchmarks.engine.bench import EngineClient
from benchmarks.engine.generate import Question
from benchmarks.engine.load import drive
from benchmarks.gpu.answers import agree, ask_all, mixed
from benchmarks.gpu.pixels import preprocess
from benchmarks.gpu.pockets import pocket
from benchmarks.gpu.results import free
from benchmarks.gpu.subjects import FAMILIES, Subject, build
from benchmarks.photograph import photograph
from models.memory import hold_to_share, kv_budget, loading, share_bytes
from raylens.core.types import Chat, Detail, ImagePart, Message, Role, TextPart, VisionRequest
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits

SECONDS = 150.0
"""In which everything must be answered."""


@dataclass
class Report:
    """Bytes, and what became of the work."""

    share: float
    bound: int = 0
    """What torch may allocate; 0 if nothing bounds it."""
    weights: int = 0
    kv: int = 0
    peak: int = 0
    """The most that torch has reserved."""
    wanted: int = 0
    """What all requests together would take of the key-value cache."""
    answered: int = 0
    asked: int = 0
    right: int = 0
    """Of those that the pocket checkpoint was asked, whose answers are the CPU engine's."""
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.share", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--model", choices=FAMILIES, default="smolvlm2-2.2b")
    parser.add_argument("--requests", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    hold_to_share(given.device, given.share)
    with loading(given.device, given.share):
        subject = build(given.model, given.scale, given.device)
    free()
    report = _budget(given.device, given.share)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    engine = AsyncEngine(
        subject.model,
        EngineLimits(max_batch_size=given.requests, kv_bytes=report.kv),
        max_waiting=64,
    )
    try:
        asyncio.run(_load(engine, subject, given.scale, given.requests, report))
    finally:
        engine.stop()
    _compare(given.device, given.scale, report)
    report.seconds = time.monotonic() - started
    if given.device.startswith("cuda"):
        report.peak = torch.cuda.max_memory_reserved()
    print(json.dumps(asdict(report)), flush=True)


def _budget(device: str, share: float) -> Report:
    """As a replica works it out. Raises ``MemoryError`` if the weights leave nothing."""
    limits = EngineLimits()
    report = Report(share, kv=kv_budget(device, share, limits.feature_bytes + limits.prefix_bytes))
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        report.bound, report.weights = share_bytes(total, share), torch.cuda.memory_allocated()
    return report


async def _load(
    engine: AsyncEngine, subject: Subject, scale: str, requests: int, report: Report
) -> None:
    """Large pictures and long answers, all at once."""
    size, longest = ((1600, 1200), 400) if scale == "full" else ((200, 200), 24)
    client, model = EngineClient(engine), subject.model

    def prepared(number: int) -> Question:
        pixels, _ = preprocess(photograph(*size, number))
        chat = Chat(
            (Message(Role.USER, (ImagePart(0, Detail.HIGH), TextPart("Describe it at length."))),)
        )
        return Question(
            model.prepare(VisionRequest("", "", chat, time.time() + 600), [pixels]), longest
        )

    questions = await asyncio.gather(
        *(asyncio.to_thread(prepared, number) for number in range(requests))
    )
    places = (question.prompt.max_total_tokens(longest, model.max_length) for question in questions)
    report.wanted = sum(places) * model.kv_shape.bytes_per_token
    async with asyncio.timeout(SECONDS):
        load = await drive([client.asking(question) for question in questions], requests)
    report.answered = len(load.answers)


def _compare(device: str, scale: str, report: Report) -> None:
    """Answers of a pocket model in the same share, and those of the CPU's engine."""
    asked = mixed("smolvlm", 1 if scale == "tiny" else 4)
    asked = [each for each in asked if each.sampling.temperature == 0]
    ours, theirs = (
        ask_all(pocket("smolvlm", device=each), asked, 8, threads=1) for each in (device, "cpu")
    )
    report.asked = len(asked)
    report.right = sum(agree(one, other) for (one,), (other,) in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
