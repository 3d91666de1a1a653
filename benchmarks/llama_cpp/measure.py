"""The seconds of one workload, with raylens and with llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median

import numpy as np

from benchmarks.engine.decode import UNBOUNDED, time_decode_steps
from benchmarks.engine.limits import measure_seconds, run_in_thread
from benchmarks.llama_cpp.build import BATCHED_BENCH, run_program
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import Model, PrefillChunk

CONTEXT = 240
"""Tokens in each row before the first step. With ``STEPS`` they are 256: llama.cpp rounds the
tokens that attention looks at up to a multiple of that."""
STEPS = 16
PREFILLS = 3
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


class Raylens:
    """A model outside an engine."""

    def __init__(self, model: Model, threads: int) -> None:
        self._model = model
        self._threads = threads

    def measure(self, workload: Workload) -> float:
        """Return the mean seconds of ``STEPS`` decode steps, or the median of ``PREFILLS``
        prompts."""
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

        return median(measure_seconds(read, "cpu") for _ in range(PREFILLS))


class LlamaCpp:
    """llama.cpp's own benchmark of a GGUF file."""

    def __init__(self, programs: Path, weights: Path, threads: int) -> None:
        self._command = [str(programs / BATCHED_BENCH), "-m", str(weights)]
        self._command += ["-t", str(threads), "-tb", str(threads), "--output-format", "jsonl"]

    def measure(self, workload: Workload) -> float:
        """Return the mean seconds of ``STEPS`` decode steps, or the median of ``PREFILLS``
        prompts."""
        if isinstance(workload, Decode):
            (result,) = self._run(workload.rows, [CONTEXT], STEPS)
            return result["t_tg"] / STEPS
        results = self._run(1, [workload.tokens] * PREFILLS, 1)
        return median(result["t_pp"] for result in results)

    def _run(self, rows: int, prompts: Sequence[int], steps: int) -> list[dict[str, float]]:
        """Read each prompt, and decode ``steps`` tokens in each of ``rows`` copies of it."""
        tokens = rows * (max(prompts) + steps)
        command = [*self._command, "-c", str(tokens), "-npl", str(rows), "-ntg", str(steps)]
        # -pps: a prompt is read once, and its keys and values are copied to every row.
        command += ["-npp", ",".join(map(str, prompts)), "-pps"]
        output = run_program(command, RUN_TIMEOUT_S)
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


System = Raylens | LlamaCpp
