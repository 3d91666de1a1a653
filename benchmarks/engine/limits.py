"""The machine's measured rates, and the least work of a request, computed from the model's
shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from models.cpu.packing import GROUP
from models.linear import Quantize, WeightPacker
from raylens.engine.model import KVSpec

T = TypeVar("T")
BUFFER_BYTES = 2 * 2**30
"""Far larger than any CPU cache."""
GEMM_SECONDS = 1.0


INT4_BYTES = 0.5 + 2 / GROUP
"""Bytes of a weight of 4 bits, with its part of a group's scale."""


@dataclass(frozen=True)
class Machine:
    """Measured rates of the machine."""

    gflops: float
    """GEMM rate: multiplications and additions, 10⁹ a second, in the vision encoder's linears."""
    gigabytes: float
    """Memory bandwidth for reads, 10⁹ bytes a second."""

    def __str__(self) -> str:
        return f"{self.gflops:.0f} GFLOP/s, {self.gigabytes:.1f} GB/s"


@dataclass(frozen=True)
class Work:
    """Bytes to read from memory and arithmetic operations to do."""

    bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations)

    def __mul__(self, times: float) -> Work:
        return Work(self.bytes * times, self.operations * times)

    def seconds(self, machine: Machine) -> float:
        return self.bytes / machine.gigabytes / 1e9 + self.operations / machine.gflops / 1e9


def measure_seconds(work: Callable[[], object], device: str) -> float:
    """Return the seconds that ``work`` takes, including what it launches on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def run_in_thread(work: Callable[[], T], threads: int) -> T:
    """Run ``work`` with ``threads`` OpenMP threads, in a Python thread of its own.

    The OpenMP team ends with that thread. A second team would slow down an engine's thread.
    """

    def run() -> T:
        torch.set_num_threads(threads)
        return work()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


@dataclass(frozen=True)
class VisionShape:
    """Shape of a vision encoder."""

    hidden: int
    linears: tuple[tuple[int, int], ...]
    """(outputs, inputs) of each linear of a layer."""
    spans: tuple[int | None, ...]
    """For each layer, the number of patches that a patch attends to; None is the whole picture."""
    patch_weights: int
    """Weights applied to each patch before the first layer."""
    projector_weights: int
    """Weights applied to each image token after the last layer."""
    patches_per_token: int

    @classmethod
    def from_config(cls, config: Any) -> VisionShape:
        """Read the shape from transformers' configuration of a SmolVLM or a Qwen2.5-VL."""
        vision = config.vision_config
        out = config.text_config.hidden_size
        hidden = vision.hidden_size
        wide = vision.intermediate_size
        if config.model_type == "qwen2_5_vl":
            merged = vision.spatial_merge_size**2
            window = (vision.window_size // vision.patch_size) ** 2
            full_attention = set(vision.fullatt_block_indexes)
            return cls(
                hidden,
                ((3 * hidden, hidden), (hidden, hidden), (2 * wide, hidden), (hidden, wide)),
                tuple(None if layer in full_attention else window for layer in range(vision.depth)),
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
        """Return the work of encoding a picture or tile of ``tokens`` image tokens.

        ``itemsize`` is the bytes of a weight; 0 leaves the weights out.
        """
        patches = tokens * self.patches_per_token
        layers = len(self.spans) * sum(outputs * inputs for outputs, inputs in self.linears)
        linears = patches * (layers + self.patch_weights) + tokens * self.projector_weights
        # Two products: queries with keys, and attention weights with values.
        attention = sum(
            2 * patches * self.hidden * min(span or patches, patches) for span in self.spans
        )
        weights = layers + self.patch_weights + self.projector_weights
        return Work(weights * itemsize, 2.0 * (linears + attention))


@dataclass(frozen=True)
class TextShape:
    """Shape of a text model."""

    layers: int
    heads_width: int
    """Number of heads times head_dim."""
    layer_weights: int
    """Weights of the linears of all layers together."""
    head_weights: int
    """Weights of the language-model head."""
    itemsize: float
    """Bytes of a layer's weight."""
    kv_bytes: int
    """Bytes that a token takes in the KV cache."""
    head_itemsize: float
    """Bytes of a weight of the head."""

    @classmethod
    def from_config(
        cls, config: Any, itemsize: float, kv: KVSpec, head_itemsize: float | None = None
    ) -> TextShape:
        """Read the shape from transformers' configuration of a SmolVLM or a Qwen2.5-VL.

        ``head_itemsize`` is ``itemsize`` unless given.
        """
        text = config.text_config
        width = text.num_attention_heads * kv.head_dim
        attention = 2 * text.hidden_size * (width + kv.num_kv_heads * kv.head_dim)
        layer = attention + 3 * text.hidden_size * text.intermediate_size
        head = text.vocab_size * text.hidden_size
        return cls(
            kv.num_layers,
            width,
            kv.num_layers * layer,
            head,
            itemsize,
            kv.bytes_per_token,
            head_itemsize or itemsize,
        )

    @property
    def _weight_bytes(self) -> float:
        return self.layer_weights * self.itemsize + self.head_weights * self.head_itemsize

    def prefill(self, tokens: int) -> Work:
        """Return the work of a prompt of ``tokens`` tokens."""
        attention = self.layers * tokens * tokens * self.heads_width
        operations = 2.0 * (tokens * self.layer_weights + self.head_weights + attention)
        return Work(self._weight_bytes, operations)

    def decode(self, rows: int, context: float) -> Work:
        """Return the memory reads of a decode step of ``rows`` rows of ``context`` tokens each.

        Operations are left out.
        """
        return Work(self._weight_bytes + rows * context * self.kv_bytes)

    def answer(self, prompt: int, tokens: int, batch: int) -> Work:
        """Return the work of an answer's decode steps, if ``batch`` rows share every step.

        Prefill gives the first token.
        """
        step = Work(self._weight_bytes / batch + (prompt + tokens / 2) * self.kv_bytes)
        return step * (tokens - 1)


def measure_machine(
    vision: VisionShape,
    patches: Sequence[int],
    dtype: torch.dtype,
    device: str,
    quantize: Quantize | None,
) -> Machine:
    """Return the best rates of several tries. ``patches`` are the numbers of rows to multiply."""
    packer = WeightPacker(device, quantize)
    layers = [packer.pack_weight(torch.randn(shape, dtype=dtype)) for shape in vision.linears]
    rates = []
    for rows in patches:
        inputs = [
            torch.randn((rows, shape[1]), dtype=dtype, device=device) for shape in vision.linears
        ]
        operations = sum(2.0 * rows * outputs * width for outputs, width in vision.linears)

        def multiply(inputs: list[torch.Tensor] = inputs) -> None:
            for layer, states in zip(layers, inputs, strict=True):
                layer(states)

        rates += [operations / seconds / 1e9 for seconds in _time_repeatedly(multiply, device)]
    return Machine(max(rates), measure_read_rate(device))


def _time_repeatedly(work: Callable[[], None], device: str) -> list[float]:
    """Return the seconds of each call, for ``GEMM_SECONDS`` after a warm-up call."""
    work()
    until = time.perf_counter() + GEMM_SECONDS
    times: list[float] = []
    while not times or time.perf_counter() < until:
        times.append(measure_seconds(work, device))
    return times


def measure_read_rate(device: str) -> float:
    """Return the best rate in 10⁹ bytes a second of a matrix-vector product and of a sum.

    Each reads the buffer once, with all threads.
    """
    buffer = torch.ones(BUFFER_BYTES // 4, device=device)
    matrix = buffer.view(-1, 4096)
    vector = torch.ones(4096, device=device)
    works: tuple[Callable[[], object], ...] = (lambda: matrix @ vector, buffer.sum)
    return max(
        BUFFER_BYTES / measure_seconds(work, device) / 1e9 for work in works for _ in range(5)
    )
