"""What the machine can do, measured, and what the work comes to, from the shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from models.linear import Packer, Quantize
from raylens.engine.model import KVShape

T = TypeVar("T")
BUFFER_BYTES = 2 * 2**30
"""Far larger than any cache."""
GEMM_SECONDS = 1.0


@dataclass(frozen=True)
class Machine:
    gflops: float
    """Multiplications and additions of the vision tower's linears, 10⁹ a second."""
    gigabytes: float
    """Read from memory, 10⁹ bytes a second."""

    def __str__(self) -> str:
        return f"{self.gflops:.0f} GFLOP/s, {self.gigabytes:.1f} GB/s"


@dataclass(frozen=True)
class Work:
    """Bytes that must come from memory, and operations that must be done."""

    bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations)

    def __mul__(self, times: float) -> Work:
        return Work(self.bytes * times, self.operations * times)

    def seconds(self, machine: Machine) -> float:
        return self.bytes / machine.gigabytes / 1e9 + self.operations / machine.gflops / 1e9


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds that it takes, a GPU's own work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_a_thread(work: Callable[[], T], threads: int) -> T:
    """Computes in a thread that then ends, and its OpenMP team with it: a second team slows an
    engine's thread."""

    def run() -> T:
        torch.set_num_threads(threads)
        return work()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


@dataclass(frozen=True)
class Tower:
    """A vision tower's shape."""

    hidden: int
    linears: tuple[tuple[int, int], ...]
    """(outputs, inputs) of a layer's."""
    spans: tuple[int | None, ...]
    """For each layer, how many patches a patch attends to; None is all of its picture's."""
    per_patch: int
    """Weights that a patch meets before the first layer."""
    per_token: int
    """Weights that an image token meets behind the last layer."""
    merged: int
    """Patches that make an image token."""

    @classmethod
    def of(cls, config: Any) -> Tower:
        vision, out = config.vision_config, config.text_config.hidden_size
        hidden, wide = vision.hidden_size, vision.intermediate_size
        if config.model_type == "qwen2_5_vl":
            merged = vision.spatial_merge_size**2
            window = (vision.window_size // vision.patch_size) ** 2
            whole = set(vision.fullatt_block_indexes)
            return cls(
                hidden,
                ((3 * hidden, hidden), (hidden, hidden), (2 * wide, hidden), (hidden, wide)),
                tuple(None if layer in whole else window for layer in range(vision.depth)),
                hidden * 3 * vision.temporal_patch_size * vision.patch_size**2,
                (hidden * merged) ** 2 + hidden * merged * out,
                merged,
            )
        merged = config.scale_factor**2
        return cls(
            hidden,
            ((3 * hidden, hidden), (hidden, hidden), (wide, hidden), (hidden, wide)),
            (None,) * vision.num_hidden_layers,
            hidden * 3 * vision.patch_size**2,
            hidden * merged * out,
            merged,
        )

    def work(self, tokens: int, itemsize: int) -> Work:
        """A picture (or tile) of so many image tokens."""
        patches = tokens * self.merged
        layers = len(self.spans) * sum(outputs * inputs for outputs, inputs in self.linears)
        linears = patches * (layers + self.per_patch) + tokens * self.per_token
        # Products of queries with keys, and of weights with values.
        attention = sum(
            2 * patches * self.hidden * min(span or patches, patches) for span in self.spans
        )
        return Work(
            (layers + self.per_patch + self.per_token) * itemsize, 2.0 * (linears + attention)
        )


@dataclass(frozen=True)
class Text:
    """A text model's shape."""

    layers: int
    heads_width: int
    """Heads times head size."""
    weights: int
    """Of all layers' linears."""
    head: int
    """Weights of the head."""
    itemsize: int
    """Bytes of a weight."""
    kv_bytes: int
    """That a token takes in the cache."""

    @classmethod
    def of(cls, config: Any, itemsize: int, kv: KVShape) -> Text:
        text = config.text_config
        width = text.num_attention_heads * kv.head_dim
        attention = 2 * text.hidden_size * (width + kv.heads * kv.head_dim)
        layer = attention + 3 * text.hidden_size * text.intermediate_size
        head = text.vocab_size * text.hidden_size
        return cls(kv.layers, width, kv.layers * layer, head, itemsize, kv.bytes_per_token)

    def prefill(self, tokens: int) -> Work:
        attention = self.layers * tokens * tokens * self.heads_width
        operations = 2.0 * (tokens * self.weights + self.head + attention)
        return Work((self.weights + self.head) * self.itemsize, operations)

    def decode(self, rows: int, context: float) -> Work:
        """A step of so many rows, each behind so many tokens: the memory's part only."""
        return Work((self.weights + self.head) * self.itemsize + rows * context * self.kv_bytes)

    def answer(self, prompt: int, tokens: int, batch: int) -> Work:
        """An answer's decode steps, where every step is shared by ``batch`` rows; prefill gives the
        first token."""
        step = Work(
            (self.weights + self.head) * self.itemsize / batch
            + (prompt + tokens / 2) * self.kv_bytes
        )
        return step * (tokens - 1)


def measure_machine(
    tower: Tower, patches: Sequence[int], dtype: torch.dtype, device: str, quantize: Quantize | None
) -> Machine:
    """The best of several; ``patches`` are the numbers of rows to multiply."""
    packer = Packer(device, quantize)
    layers = [packer.weight(torch.randn(shape, dtype=dtype)) for shape in tower.linears]
    rates = []
    for rows in patches:
        inputs = [
            torch.randn((rows, shape[1]), dtype=dtype, device=device) for shape in tower.linears
        ]
        operations = sum(2.0 * rows * outputs * width for outputs, width in tower.linears)

        def multiply(inputs: list[torch.Tensor] = inputs) -> None:
            for layer, states in zip(layers, inputs, strict=True):
                layer(states)

        rates += [operations / seconds / 1e9 for seconds in _for_a_while(multiply, device)]
    return Machine(max(rates), _read_rate(device))


def _for_a_while(work: Callable[[], None], device: str) -> list[float]:
    work()
    until = time.perf_counter() + GEMM_SECONDS
    times: list[float] = []
    while not times or time.perf_counter() < until:
        times.append(timed(work, device))
    return times


def _read_rate(device: str) -> float:
    """A matrix times a vector, and a sum: each reads the buffer once, in all threads."""
    buffer = torch.ones(BUFFER_BYTES // 4, device=device)
    matrix, vector = buffer.view(-1, 4096), torch.ones(4096, device=device)
    works: tuple[Callable[[], object], ...] = (lambda: matrix @ vector, buffer.sum)
    return max(BUFFER_BYTES / timed(work, device) / 1e9 for work in works for _ in range(5))
