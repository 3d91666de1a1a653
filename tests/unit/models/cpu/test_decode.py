"""Whole decode steps in C against the same layers in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cpu.decode import NativeDecodeStep
from models.cpu.library import Library
from models.cpu.linear import NativeLinear
from models.decoder import Decoder, DecoderSpec
from models.linear import Linear
from models.llama import LlamaLayer
from models.moondream.text import MoondreamLayer
from models.norms import RMSNorm
from models.rope import RopeParameters
from raylens.engine.model import KVRows, KVSpec, ModelOutput

LAYERS, HIDDEN, INNER, VOCABULARY = 3, 100, 130, 77
LENGTHS = {128: [5, 0, 77, 127], 256: [130, 15], 1024: [1000]}
"""The rows' lengths in arenas of these capacities."""
Pack = Callable[[Tensor, Tensor | None, str], Linear]


@dataclass(frozen=True)
class Shape:
    query_heads: int
    kv_heads: int
    head_dim: int
    gated: bool
    dtype: torch.dtype = torch.float32


SHAPES = [
    Shape(6, 2, 64, gated=True),
    Shape(5, 1, 80, gated=True),
    Shape(14, 2, 128, gated=True, dtype=torch.bfloat16),
    Shape(4, 2, 72, gated=True, dtype=torch.bfloat16),
    Shape(4, 4, 72, gated=False),
    Shape(3, 3, 24, gated=False, dtype=torch.bfloat16),
    Shape(2, 1, 64, gated=False, dtype=torch.bfloat16),
]


class TorchLinear:
    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight, self._bias, self._gelu = weight, bias, activation == "gelu"

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        outputs = F.linear(states, self._weight, self._bias)
        outputs = F.gelu(outputs, approximate="tanh") if self._gelu else outputs
        return outputs if residual is None else residual + outputs


def decoder(shape: Shape, pack: Pack) -> Decoder:
    """Return a decoder of random weights, the same for every ``pack``."""
    random = torch.Generator().manual_seed(3)
    draw = partial(torch.randn, generator=random)

    def linear(inputs: int, outputs: int, activation: str = "none") -> Linear:
        weight = draw(outputs, inputs).to(shape.dtype) / inputs**0.5
        return pack(weight, draw(outputs).to(shape.dtype) / 10, activation)

    def rms_norm() -> RMSNorm:
        return RMSNorm((1 + draw(HIDDEN) / 10).to(shape.dtype), 1e-5)

    def layer_norm() -> nn.LayerNorm:
        norm = nn.LayerNorm(HIDDEN, dtype=shape.dtype)
        norm.weight = nn.Parameter(1 + (draw(HIDDEN) / 10).to(shape.dtype), requires_grad=False)
        norm.bias = nn.Parameter((draw(HIDDEN) / 10).to(shape.dtype), requires_grad=False)
        return norm

    def layer() -> LlamaLayer | MoondreamLayer:
        heads = shape.query_heads + 2 * shape.kv_heads
        qkv = linear(HIDDEN, heads * shape.head_dim)
        out = linear(shape.query_heads * shape.head_dim, HIDDEN)
        if not shape.gated:
            expand = linear(HIDDEN, INNER, "gelu")
            return MoondreamLayer(layer_norm(), qkv, out, expand, linear(INNER, HIDDEN))
        up = linear(HIDDEN, 2 * INNER)
        return LlamaLayer(rms_norm(), qkv, out, rms_norm(), up, linear(INNER, HIDDEN))

    layers = [layer() for _ in range(LAYERS)]
    frequencies = 1e-4 ** torch.linspace(0, 1, shape.head_dim // 2)
    frequencies[shape.head_dim // 4 :] = 0  # a partial rotary embedding
    return Decoder(
        DecoderSpec(
            embed=partial(F.embedding, weight=draw(VOCABULARY, HIDDEN).to(shape.dtype)),
            layers=layers,
            norm=rms_norm() if shape.gated else layer_norm(),
            head=linear(HIDDEN, VOCABULARY),
            rope=RopeParameters(frequencies),
            num_query_heads=shape.query_heads,
            kv_spec=KVSpec(LAYERS, shape.kv_heads, shape.head_dim, shape.dtype, "cpu"),
            layer_parts=[one.parts for one in layers],
        )
    )


def native_decoder(shape: Shape, library: Library) -> Decoder:
    def pack(weight: Tensor, bias: Tensor | None, activation: str) -> Linear:
        return NativeLinear(library, weight, bias, activation)

    return decoder(shape, pack)


def arenas(shape: Shape) -> list[KVRows]:
    """Return arenas with one row more than is in use."""
    torch.manual_seed(1)
    return [
        KVRows(
            [
                torch.randn(2, len(lengths) + 1, shape.kv_heads, capacity, shape.head_dim).to(
                    shape.dtype
                )
                for _ in range(LAYERS)
            ],
            lengths,
        )
        for capacity, lengths in LENGTHS.items()
    ]


def run(model: Decoder, rows: list[KVRows], tokens: Tensor) -> ModelOutput:
    positions = [length for kv_rows in rows for length in kv_rows.lengths]
    with torch.inference_mode():
        return model.decode(tokens, positions, rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_equal_torchs(library: Library, shape: Shape) -> None:
    tokens = torch.arange(7)
    native, plain = native_decoder(shape, library), decoder(shape, TorchLinear)
    assert native._native_step is not None
    assert plain._native_step is None
    native_rows, plain_rows = arenas(shape), arenas(shape)
    output, expected = run(native, native_rows, tokens), run(plain, plain_rows, tokens)
    tolerance = 2e-6 if shape.dtype is torch.float32 else 1.5e-2
    assert output.logits.dtype is torch.float32
    assert output.hidden_states.dtype is shape.dtype
    for name in ("logits", "hidden_states"):
        ours, theirs = getattr(output, name).float(), getattr(expected, name).float()
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance
    for kv_rows, plain_kv_rows in zip(native_rows, plain_rows, strict=True):
        for layer, plain_layer in zip(kv_rows.layer_kv, plain_kv_rows.layer_kv, strict=True):
            torch.testing.assert_close(layer, plain_layer, atol=4 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_does_not_depend_on_the_others(library: Library, shape: Shape) -> None:
    native = native_decoder(shape, library)
    tokens = torch.arange(7)
    together = run(native, arenas(shape), tokens)
    alone = [
        KVRows([layer[:, row : row + 1] for layer in kv_rows.layer_kv], [length])
        for kv_rows in arenas(shape)
        for row, length in enumerate(kv_rows.lengths)
    ]
    for index, kv_rows in enumerate(alone):
        output = run(native, [kv_rows], tokens[index : index + 1])
        assert torch.equal(output.logits[0], together.logits[index])
        assert torch.equal(output.hidden_states[0], together.hidden_states[index])


def test_a_spoiled_row_spoils_only_itself(library: Library) -> None:
    shape = SHAPES[0]
    native = native_decoder(shape, library)
    tokens = torch.arange(7)
    expected = run(native, arenas(shape), tokens)
    spoiled = arenas(shape)
    spoiled[0].layer_kv[1][0, 2, 0, 3, 5] = float("nan")
    # What lies behind a row's end is not read.
    spoiled[1].layer_kv[0][:, 0, :, 131:] = float("nan")
    spoiled[1].layer_kv[0][:, 2] = float("nan")
    output = run(native, spoiled, tokens)
    assert not output.logits[2].isfinite().any()
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(output.logits[others], expected.logits[others])


def test_a_full_row_is_refused(library: Library) -> None:
    shape = SHAPES[0]
    rows = [KVRows(arenas(shape)[0].layer_kv, [5, 128])]
    with pytest.raises(IndexError, match="a row of 128 tokens is full"):
        run(native_decoder(shape, library), rows, torch.arange(2))


def test_layers_of_another_form_have_no_native_step(library: Library) -> None:
    native = native_decoder(SHAPES[0], library)
    spec = native._spec
    assert NativeDecodeStep.create(None, spec.norm, spec.head, 6, spec.kv_spec) is None
    assert (
        NativeDecodeStep.create(spec.layer_parts, lambda x: x, spec.head, 6, spec.kv_spec) is None
    )
