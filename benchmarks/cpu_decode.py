"""Decode steps on a CPU, without an engine around them, beside the memory's limit.

``python -m benchmarks.cpu_decode`` prints, for each shape, precision and number of rows, the median
milliseconds of a step with the native kernels, the share of the limit, and the same with torch's
kernels. A step's limit is the time to read its weights, and the rows' keys and values, once at the
memory bandwidth, which is measured before and after each precision's steps, in the same process.
Weights are random: speed doesn't depend on them. docs/cpu.md has results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.engine.decode import measure_decode_step
from benchmarks.engine.limits import INT4_BYTES, measure_read_rate
from models.cpu.library import SWITCH
from models.decoder import Decoder, DecoderSpec
from models.linear import Linear, Quantize, WeightPacker
from models.llama import LlamaLayer
from models.moondream.text import MoondreamLayer
from models.norms import RMSNorm
from models.rope import RopeParameters
from raylens.engine.model import KVRows, KVSpec, ModelOutput

Precision = Literal["float32", "bfloat16", "int8", "int4"]
QUANTIZE: dict[str, Quantize] = {"int8": "int8", "int4": "int4"}
CONTEXT = 256
STEPS = 12


@dataclass(frozen=True)
class Shape:
    """A text model's shape. A gated one has the Llama family's layers, another Moondream's."""

    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    gated: bool = True

    @property
    def layer_weights(self) -> int:
        heads = 2 * self.query_heads + 2 * self.kv_heads
        products = 3 if self.gated else 2
        return self.hidden * (heads * self.head_dim + products * self.inner)


SHAPES = {
    "smolvlm2-500m": Shape(32, 960, 15, 5, 64, 2560, 49280),
    "qwen2.5-vl-3b": Shape(36, 2048, 16, 2, 128, 11008, 151936),
    "moondream-0.5b": Shape(24, 1024, 16, 16, 64, 4096, 51200, gated=False),
    "moondream-2b": Shape(24, 2048, 32, 32, 64, 8192, 51200, gated=False),
}


@dataclass(frozen=True)
class Result:
    precision: Precision
    rows: int
    milliseconds: float
    gigabytes: float
    """Memory bandwidth of the same process, 10⁹ bytes a second."""
    limit_ms: float

    @property
    def share(self) -> float:
        return self.limit_ms / self.milliseconds


class RandomDecoder:
    """A decoder of random weights: what :func:`measure_decode_step` needs of a model."""

    device = "cpu"

    def __init__(self, shape: Shape, precision: Precision) -> None:
        self._shape = shape
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self._packer = WeightPacker(quantize=QUANTIZE.get(precision))
        self.kv_spec = KVSpec(shape.layers, shape.kv_heads, shape.head_dim, self._dtype, "cpu")
        self._noise = torch.randn(shape.vocabulary * shape.hidden, dtype=self._dtype)
        layers = [self._layer() for _ in range(shape.layers)]
        table = torch.zeros(shape.vocabulary, shape.hidden, dtype=self._dtype)
        self._decoder = Decoder(
            DecoderSpec(
                embed=partial(F.embedding, weight=table),
                layers=layers,
                norm=self._rms_norm() if shape.gated else self._layer_norm(),
                head=self._linear(shape.hidden, shape.vocabulary, allows_int4=False),
                rope=RopeParameters(1e-4 ** torch.linspace(0, 1, shape.head_dim // 2)),
                num_query_heads=shape.query_heads,
                kv_spec=self.kv_spec,
                layer_parts=[layer.parts for layer in layers],
            )
        )

    @torch.inference_mode()
    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        return self._decoder.decode(token_ids, positions, rows_by_arena)

    def _layer(self) -> LlamaLayer | MoondreamLayer:
        shape = self._shape
        heads = shape.query_heads * shape.head_dim
        qkv = self._linear(shape.hidden, heads + 2 * shape.kv_heads * shape.head_dim)
        out = self._linear(heads, shape.hidden)
        if not shape.gated:
            expand = self._linear(shape.hidden, shape.inner, "gelu")
            contract = self._linear(shape.inner, shape.hidden)
            return MoondreamLayer(self._layer_norm(), qkv, out, expand, contract)
        up = self._linear(shape.hidden, 2 * shape.inner)
        down = self._linear(shape.inner, shape.hidden)
        return LlamaLayer(self._rms_norm(), qkv, out, self._rms_norm(), up, down)

    def _linear(
        self, inputs: int, outputs: int, activation: str = "none", allows_int4: bool = True
    ) -> Linear:
        # Every weight is a copy of the same noise, which is drawn once.
        weight = self._noise[: outputs * inputs].view(outputs, inputs) * inputs**-0.5
        bias = None if self._shape.gated else torch.zeros(outputs, dtype=self._dtype)
        return self._packer.pack_weight(weight, bias, activation, allows_int4)

    def _rms_norm(self) -> RMSNorm:
        return RMSNorm(torch.ones(self._shape.hidden, dtype=self._dtype), 1e-5)

    def _layer_norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self._shape.hidden, dtype=self._dtype).requires_grad_(False)


def bytes_of_step(shape: Shape, precision: Precision, rows: int) -> float:
    """Return the bytes that a step reads: weights, keys and values."""
    weight_bytes = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": INT4_BYTES}
    head_bytes = 1.0 if precision == "int4" else weight_bytes[precision]
    layers = shape.layers * shape.layer_weights * weight_bytes[precision]
    head = shape.vocabulary * shape.hidden * head_bytes
    kv_bytes = 4 if precision == "float32" else 2
    token = 2 * shape.layers * shape.kv_heads * shape.head_dim * kv_bytes
    return layers + head + rows * CONTEXT * token


def measure(name: str, precision: Precision, row_counts: list[int], steps: int) -> list[Result]:
    """Measure one shape and precision in this process."""
    shape = SHAPES[name]
    model = RandomDecoder(shape, precision)
    bandwidth = measure_read_rate("cpu")
    results = []
    for rows in row_counts:
        seconds = measure_decode_step(model, rows, CONTEXT, steps)
        results.append(Result(precision, rows, seconds * 1e3, 0.0, 0.0))
    bandwidth = max(bandwidth, measure_read_rate("cpu"))
    return [
        replace(
            result,
            gigabytes=bandwidth,
            limit_ms=bytes_of_step(shape, precision, result.rows) / bandwidth / 1e6,
        )
        for result in results
    ]


def measure_in_child(
    arguments: argparse.Namespace, precision: Precision, kernels: str
) -> list[Result]:
    """Measure in a process of its own, whose memory is gone afterwards."""
    command = [sys.executable, "-m", "benchmarks.cpu_decode", "--child", arguments.shape, precision]
    command += ["--rows", *map(str, arguments.rows), "--steps", str(arguments.steps)]
    command += ["--threads", str(arguments.threads)]
    environment = {**os.environ, SWITCH: kernels}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    return [Result(**fields) for fields in json.loads(output)]


def report(arguments: argparse.Namespace) -> None:
    print(f"{arguments.shape}, {CONTEXT} tokens a row, {arguments.threads} threads")
    print("| precision | rows | ms a step | of the memory's limit | GB/s | torch, ms a step |")
    print("| --- | --- | --- | --- | --- | --- |")
    for precision in arguments.precisions:
        native = measure_in_child(arguments, precision, "native")
        has_torch = arguments.torch and precision != "int4"
        torch_results = measure_in_child(arguments, precision, "torch") if has_torch else []
        for index, result in enumerate(native):
            other = f"{torch_results[index].milliseconds:.1f}" if torch_results else ""
            print(
                f"| {precision} | {result.rows} | {result.milliseconds:.1f} | {result.share:.0%}"
                f" | {result.gigabytes:.1f} | {other} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smolvlm2-500m")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-torch", dest="torch", action="store_false")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        name, precision = arguments.child
        results = measure(name, precision, arguments.rows, arguments.steps)
        print(json.dumps([asdict(result) for result in results]))
    else:
        report(arguments)


if __name__ == "__main__":
    main()
