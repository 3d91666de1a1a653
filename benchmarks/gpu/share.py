"""Run one engine with a share of the card, for :mod:`benchmarks.gpu.shares`.

``python -m benchmarks.gpu.share`` prints ``ready`` once its model is loaded, starts after a line on
standard input, and ends with a line of JSON: a :class:`Report`.
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
from benchmarks.engine.generate import Request
from benchmarks.engine.load import drive
from benchmarks.gpu.answers import answer_all, is_equivalent, mixed_requests
from benchmarks.gpu.pixels import preprocess
from benchmarks.gpu.pockets import load_pocket
from benchmarks.gpu.results import free
from benchmarks.gpu.subjects import FAMILY_BY_MODEL, Subject, build
from benchmarks.photograph import draw_photograph
from models.memory import kv_cache_bytes, limit_gpu_memory, report_oversized_weights, share_bytes
from raylens.core.types import Chat, Detail, ImagePart, Message, Role, TextPart, VisionRequest
from raylens.engine.async_engine import AsyncEngine
from raylens.engine.limits import EngineLimits

TIMEOUT_S = 150.0
"""Timeout of the load."""


@dataclass
class Report:
    """Memory, in bytes, and outcome of the load."""

    share: float
    bound: int = 0
    """Maximum that torch may allocate; 0 if it is not limited."""
    weights: int = 0
    kv: int = 0
    """KV cache budget."""
    peak: int = 0
    """Maximum that torch has reserved."""
    needed_kv: int = 0
    """KV cache that all requests would take together."""
    answered: int = 0
    """Number of requests of the load that were answered."""
    compared: int = 0
    """Number of requests to the pocket checkpoint."""
    right: int = 0
    """Number of the pocket checkpoint's answers that equal those of the engine on the CPU."""
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.share", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--model", choices=FAMILY_BY_MODEL, default="smolvlm2-2.2b")
    parser.add_argument("--requests", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    limit_gpu_memory(args.device, args.share)
    with report_oversized_weights(args.device, args.share):
        subject = build(args.model, args.scale, args.device)
    free()
    report = _make_report(args.device, args.share)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    limits = EngineLimits(max_batch_size=args.requests, kv_bytes=report.kv)
    engine = AsyncEngine(subject.model, limits, max_waiting=64)
    try:
        asyncio.run(_run_load(engine, subject, args.scale, args.requests, report))
    finally:
        engine.stop()
    _compare_answers(args.device, args.scale, report)
    report.seconds = time.monotonic() - started
    if args.device.startswith("cuda"):
        report.peak = torch.cuda.max_memory_reserved()
    print(json.dumps(asdict(report)), flush=True)


def _make_report(device: str, share: float) -> Report:
    """Compute the KV cache budget as a replica does.

    Raises ``MemoryError`` if the weights leave no room.
    """
    limits = EngineLimits()
    kv_bytes = kv_cache_bytes(device, share, limits.feature_bytes + limits.prefix_bytes)
    report = Report(share, kv=kv_bytes)
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(0).total_memory
        report.bound = share_bytes(total, share)
        report.weights = torch.cuda.memory_allocated()
    return report


async def _run_load(
    engine: AsyncEngine, subject: Subject, scale: str, requests: int, report: Report
) -> None:
    """Send requests with large pictures and long answers, all at once."""
    size = (1600, 1200) if scale == "full" else (200, 200)
    tokens = 400 if scale == "full" else 24
    client = EngineClient(engine)
    model = subject.model

    def prepare(number: int) -> Request:
        pixels, _ = preprocess(draw_photograph(*size, number))
        parts = (ImagePart(0, Detail.HIGH), TextPart("Describe it at length."))
        chat = Chat((Message(Role.USER, parts),))
        vision_request = VisionRequest("", "", chat, time.time() + 600)
        return Request(model.prepare(vision_request, [pixels]), tokens)

    prepared = await asyncio.gather(
        *(asyncio.to_thread(prepare, number) for number in range(requests))
    )
    cache_tokens = sum(
        request.prompt.max_total_tokens(tokens, model.max_length) for request in prepared
    )
    report.needed_kv = cache_tokens * model.kv_spec.bytes_per_token
    async with asyncio.timeout(TIMEOUT_S):
        load = await drive([client.make_sender(request) for request in prepared], requests)
    report.answered = len(load.answers)


def _compare_answers(device: str, scale: str, report: Report) -> None:
    """Compare a pocket model's greedy answers in the same share with those on the CPU."""
    requests = [
        request
        for request in mixed_requests("smolvlm", 1 if scale == "tiny" else 4)
        if request.sampling.temperature == 0
    ]
    replies = answer_all(load_pocket("smolvlm", device=device), requests, 8, threads=1)
    cpu_replies = answer_all(load_pocket("smolvlm", device="cpu"), requests, 8, threads=1)
    report.compared = len(requests)
    report.right = sum(
        is_equivalent(reply, cpu_reply)
        for (reply,), (cpu_reply,) in zip(replies, cpu_replies, strict=True)
    )


if __name__ == "__main__":
    main()
