"""The seconds of one workload, with raylens and with llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np

from benchmarks.engine.decode import UNBOUNDED, time_decode_steps
from benchmarks.engine.limits import measure_seconds, run_in_thread
from benchmarks.llama_cpp.build import BATCHED_BENCH, run_program
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import Model, PrefillChunk

CONTEXT = 248
"""Tokens in each row before the first step. With ``STEPS`` they are 256: llama.cpp rounds the
tokens that attention looks at up to a multiple of that."""
STEPS = 8
RUN_TIMEOUT_S = 600


@dataclass(frozen=True)
class Decode:
    """A decode step of so many rows."""

    rows: int

    def __str__(self) -> str:
        return f"decode step, {self.rows} row{'s' if self.rows > 1 else ''}"


@dataclass(frozen=True)
class Prefill:
    """A prompt of so many tokens, alone, up to its last token's logits."""

    tokens: int

    def __str__(self) -> str:
        return f"prompt of {self.tokens} tokens"


Workload = Decode | Prefill


class System(Protocol):
    """What runs a model."""

    def measure(self, workload: Workload) -> float:
        """Return the mean seconds of ``STEPS`` decode steps, or those of a prompt.

        A prompt is read twice, and the second time counts: the first one also maps memory.
        """
        ...


class Raylens(System):
    """A model outside an engine."""

    def __init__(self, model: Model, threads: int) -> None:
        self._model = model
        self._threads = threads

    def measure(self, workload: Workload) -> float:
        if isinstance(workload, Decode):
            work = partial(self._decode, workload.rows)
        else:
            work = partial(self._prefill, workload.tokens)
        # The threads end with the work: they would spin beside llama.cpp's.
        return run_in_thread(work, self._threads)

    def _decode(self, rows: int) -> float:
        # The first step starts the threads; llama.cpp's run already, because of the prompt.
        return fmean(time_decode_steps(self._model, rows, CONTEXT - 1, STEPS + 1)[1:])

    def _prefill(self, tokens: int) -> float:
        cache: KVCache[int] = KVCache(self._model.kv_spec, UNBOUNDED, 1)
        cache.reserve(0, tokens)
        cache.advance(0, tokens)
        chunk = PrefillChunk(0, [1] * tokens, (), np.arange(tokens)[None])

        def read() -> None:
            for _ in self._model.prefill([chunk], lambda: [cache.row_of(0)], tokens):
                pass

        _, second = (measure_seconds(read, "cpu") for _ in range(2))
        return second


class LlamaCpp(System):
    """llama.cpp's own benchmark of a GGUF file."""

    def __init__(self, programs: Path, weights: Path, threads: int) -> None:
        self._command = [str(programs / BATCHED_BENCH), "-m", str(weights)]
        self._command += ["-t", str(threads), "-tb", str(threads), "--output-format", "jsonl"]

    def measure(self, workload: Workload) -> float:
        if isinstance(workload, Decode):
            (result,) = self._run(workload.rows, [CONTEXT], STEPS)
            return result["t_tg"] / STEPS
        _, second = self._run(1, [workload.tokens] * 2, 1)
        return second["t_pp"]

    def _run(self, rows: int, prompts: Sequence[int], steps: int) -> list[dict[str, float]]:
        """Read each prompt, and decode ``steps`` tokens in each of ``rows`` copies of it."""
        tokens = rows * (max(prompts) + steps)
        command = [*self._command, "-c", str(tokens), "-npl", str(rows), "-ntg", str(steps)]
        # -pps: a prompt is read once, and its keys and values are copied to every row.
        command += ["-npp", ",".join(map(str, prompts)), "-pps"]
        output = run_program(command, RUN_TIMEOUT_S)
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]
