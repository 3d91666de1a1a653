"""Stage *shares*: an engine that holds a share of the card stays inside it, alone and beside
another."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from benchmarks.gpu.results import Line, StagePart
from benchmarks.gpu.setup import Setup

GIB = 2**30
TIMEOUT_S = 300.0
"""Time after which a process is killed."""
MODEL = "smolvlm2-2.2b"
LARGE_MODEL = "qwen2.5-vl-7b"
LARGE_MODEL_BYTES = 16.6e9
"""Bytes of the large model's weights."""


def parts(setup: Setup) -> Iterator[StagePart]:
    requests_alone = 3 if setup.is_tiny else 64
    requests_each = 2 if setup.is_tiny else 32
    yield StagePart(
        "engines in 0.3 and 0.35", partial(_run_engines, setup, (0.3, 0.35), requests_each)
    )
    yield StagePart("an engine in 0.3", partial(_run_engines, setup, (0.3,), requests_alone))
    yield StagePart("a model that doesn't fit", partial(_load_too_large, setup))


def _run_engines(setup: Setup, shares: Sequence[float], requests: int) -> Iterator[Line]:
    """Check that every answer arrives and is right, and that no process exceeds its share."""
    with ExitStack() as stack:
        watch = stack.enter_context(MemoryWatch(setup.is_cuda))
        workers = [stack.enter_context(Worker(setup, share, MODEL, requests)) for share in shares]
        for worker in workers:
            worker.read("ready")
        for worker in workers:
            worker.start()
        reports = [json.loads(worker.read("{")) for worker in workers]
    for report in reports:
        yield _report_line(report, requests, setup.is_cuda)
    if setup.is_cuda:
        allowed = sum(shares) * watch.total
        text = f"{watch.taken / GIB:.1f} GiB taken of the card, {allowed / GIB:.1f} allowed"
        yield Line(text, {"taken": watch.taken, "allowed": allowed})
        assert watch.taken <= allowed, text
    for report in reports:
        answered = report["answered"]
        assert answered == requests, f"{answered} of {requests} requests were answered"
        assert report["right"] == report["compared"], "answers differ from the CPU's"
        if setup.is_cuda:
            assert report["peak"] <= report["bound"], "torch took more than its bound"
            if len(shares) == 1:
                assert report["needed_kv"] > report["kv"], "the load did not fill the KV cache"


def _report_line(report: dict[str, Any], requests: int, is_cuda: bool) -> Line:
    share = report["share"]
    kv = report["kv"] / GIB
    needed = report["needed_kv"] / GIB
    phrases = [
        f"{share}: {report['answered']} of {requests} answered in {report['seconds']:.1f} s",
        f"{report['right']} of {report['compared']} equal the CPU's",
        f"KV cache of {kv:.2f} GiB for requests of {needed:.2f} GiB",
    ]
    if is_cuda:
        weights = report["weights"] / GIB
        peak = report["peak"] / GIB
        bound = report["bound"] / GIB
        phrases.append(f"weights {weights:.1f}, peak {peak:.1f} of {bound:.1f} GiB")
    else:
        phrases.append("a CPU's memory isn't limited")
    return Line("; ".join(phrases), report)


def _load_too_large(setup: Setup) -> Iterator[Line]:
    """Check the error of a share smaller than the weights, and of one that the weights fill."""
    if not setup.is_cuda:
        yield Line("a CPU's memory isn't limited")
        return
    total = torch.cuda.get_device_properties(0).total_memory
    for share in (0.1, 1.18 * LARGE_MODEL_BYTES / total):
        message = ""
        with Worker(setup, share, LARGE_MODEL, 1) as worker:
            try:
                worker.read("ready")
            except RuntimeError as error:
                message = str(error)
        text = f"{LARGE_MODEL} in {share:.2f}: {message[:300] or 'was loaded'}"
        yield Line(text, {"share": share, "error": message})
        assert "Memory" in message, "expected an out-of-memory error"
        assert "GiB" in message, "the error gives no figures"


class Worker:
    """Another process with a share of the card, killed at the end of the context."""

    def __init__(self, setup: Setup, share: float, model: str, requests: int) -> None:
        self._log = Path(setup.folder) / f"share-{share}.log"
        options = {
            "device": setup.device,
            "scale": setup.scale,
            "share": share,
            "model": model,
            "requests": requests,
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        with self._log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.share", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._timer = threading.Timer(TIMEOUT_S, self._process.kill)
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()

    def read(self, prefix: str) -> str:
        """Return the next output line that starts with ``prefix``.

        Raises ``RuntimeError`` with the last line of the process's log if the process ends first.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(prefix):
                return line
        log_lines = [line for line in self._log.read_text().splitlines() if line.strip()]
        if log_lines:
            raise RuntimeError(log_lines[-1])
        raise RuntimeError(f"the process ended with status {self._process.wait()}")

    def start(self) -> None:
        """Start the load."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


class MemoryWatch:
    """Watches the card's memory while the context is open.

    ``total`` is the card's memory in bytes; ``taken`` the most that was taken since the start.
    """

    def __init__(self, is_cuda: bool) -> None:
        self.taken = 0
        self.total = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch) if is_cuda else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._free, self.total = torch.cuda.mem_get_info()
            self._thread.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            free, _ = torch.cuda.mem_get_info()
            self.taken = max(self.taken, self._free - free)
