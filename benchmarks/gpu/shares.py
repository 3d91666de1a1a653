"""Stage *shares*: an engine that holds a part of the card stays inside it, alone and beside
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

from benchmarks.gpu.results import Line, Part
from benchmarks.gpu.setup import Setup

GIB = 2**30
SECONDS = 300.0
"""After which a process is ended."""
MODEL, LARGE = "smolvlm2-2.2b", "qwen2.5-vl-7b"
LARGE_BYTES = 16.6e9
"""The larger one's weights."""


def parts(setup: Setup) -> Iterator[Part]:
    requests = (3, 2) if setup.is_tiny else (64, 32)
    yield Part("engines in 0.3 and 0.35", partial(_held, setup, (0.3, 0.35), requests[1]))
    yield Part("an engine in 0.3", partial(_held, setup, (0.3,), requests[0]))
    yield Part("a model that doesn't fit", partial(_misfits, setup))


def _held(setup: Setup, shares: Sequence[float], requests: int) -> Iterator[Line]:
    """Everything is answered, rightly, and nobody takes more than its share."""
    with ExitStack() as stack:
        watch = stack.enter_context(Watch(setup.is_cuda))
        workers = [stack.enter_context(Worker(setup, share, MODEL, requests)) for share in shares]
        for worker in workers:
            worker.read("ready")
        for worker in workers:
            worker.begin()
        reports = [json.loads(worker.read("{")) for worker in workers]
    for report in reports:
        yield _told(report, requests, setup.is_cuda)
    if setup.is_cuda:
        allowed = sum(shares) * watch.total
        text = f"{watch.taken / GIB:.1f} GiB taken of the card, {allowed / GIB:.1f} allowed"
        yield Line(text, {"taken": watch.taken, "allowed": allowed})
        assert watch.taken <= allowed, text
    for report in reports:
        assert report["answered"] == requests, (
            f"{report['answered']} of {requests} requests were answered"
        )
        assert report["right"] == report["asked"], "answers differ from the CPU's"
        assert not setup.is_cuda or report["peak"] <= report["bound"], (
            "torch took more than its bound"
        )
        assert not setup.is_cuda or len(shares) > 1 or report["wanted"] > report["kv"], (
            "the load was too small"
        )


def _told(report: dict[str, Any], requests: int, is_cuda: bool) -> Line:
    words = [
        f"{report['share']}: {report['answered']} of {requests} answered in {report['seconds']:.1f} s",
        f"{report['right']} of {report['asked']} as on the CPU",
        f"{report['kv'] / GIB:.2f} GiB of keys and values for {report['wanted'] / GIB:.2f}",
    ]
    if is_cuda:
        words.append(
            f"weights {report['weights'] / GIB:.1f}, peak {report['peak'] / GIB:.1f} of {report['bound'] / GIB:.1f} GiB"
        )
    else:
        words.append("memory isn't limited on a CPU")
    return Line("; ".join(words), report)


def _misfits(setup: Setup) -> Iterator[Line]:
    """A share that is too small for the weights, and one that they fill: what the error says."""
    if not setup.is_cuda:
        yield Line("memory isn't limited on a CPU")
        return
    total = torch.cuda.get_device_properties(0).total_memory
    for share in (0.1, 1.18 * LARGE_BYTES / total):
        said = ""
        with Worker(setup, share, LARGE, 1) as worker:
            try:
                worker.read("ready")
            except RuntimeError as error:
                said = str(error)
        yield Line(
            f"{LARGE} in {share:.2f}: {said[:300] or 'was loaded'}", {"share": share, "error": said}
        )
        assert "Memory" in said, "no lack of memory"
        assert "GiB" in said, "the error gives no figures"


class Worker:
    """Another process with a share of the card; it is ended with the context."""

    def __init__(self, setup: Setup, share: float, model: str, requests: int) -> None:
        self._errors = Path(setup.folder) / f"share-{share}.log"
        options = {
            "device": setup.device,
            "scale": setup.scale,
            "share": share,
            "model": model,
            "requests": requests,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.share", *given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._timer = threading.Timer(SECONDS, self._process.kill)
        self._timer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()

    def read(self, beginning: str) -> str:
        """The next line that begins so. Raises ``RuntimeError`` with the process's last words if it
        ends before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
        last = [line for line in self._errors.read_text().splitlines() if line.strip()]
        raise RuntimeError(last[-1] if last else f"it ended with status {self._process.wait()}")

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


class Watch:
    """The most that others take of the card's ``total`` bytes while this watches: ``taken``."""

    def __init__(self, is_cuda: bool) -> None:
        self.taken = self.total = 0
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
            self.taken = max(self.taken, self._free - torch.cuda.mem_get_info()[0])
