"""Attention of many tokens in C against float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.cpu.attention import AttentionInput, attend
from models.cpu.library import Library

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TOLERANCE = {FLOAT32: 1e-6, BFLOAT16: 4e-3}


@dataclass(frozen=True)
class Shape:
    queries: int
    keys: int
    query_heads: int
    kv_heads: int
    head_dim: int
    prefix: int | None = None
    """The first queries attend to as many keys, and each other one to all before it. None: all
    attend to all."""


SHAPES = [
    Shape(37, 37, 4, 4, 72),
    Shape(100, 100, 3, 3, 128),
    Shape(1, 1, 2, 1, 80),
    Shape(50, 50, 6, 2, 64, prefix=0),
    Shape(50, 81, 6, 2, 64, prefix=40),
    Shape(13, 333, 8, 8, 24, prefix=0),
    Shape(9, 40, 7, 1, 2, prefix=0),
]


def attention_input(shape: Shape, dtype: torch.dtype) -> AttentionInput:
    """Return random tokens, each surrounded by memory that must not be read."""
    torch.manual_seed(2)
    query = torch.randn(shape.queries, shape.query_heads, shape.head_dim)
    kv = torch.full((2, shape.kv_heads, shape.keys + 5, shape.head_dim), torch.nan)
    kv[:, :, : shape.keys] = torch.randn(2, shape.kv_heads, shape.keys, shape.head_dim)
    key, value = kv.to(dtype)[:, :, : shape.keys].transpose(1, 2)
    value = torch.stack([value, value * torch.nan], 1)[:, 0]  # its strides differ from the keys'
    limits = None
    if shape.prefix is not None:
        first = shape.keys - shape.queries + 1
        limits = torch.arange(first, shape.keys + 1, dtype=torch.int32).clamp_(min=shape.prefix)
    spaced = torch.full((shape.queries, 3, *query.shape[1:]), torch.nan, dtype=dtype)
    spaced[:, 1] = query
    return AttentionInput(spaced[:, 1], key, value, limits)


def expected(one: AttentionInput) -> Tensor:
    query, key, value = (
        states.double().transpose(0, 1) for states in (one.query, one.key, one.value)
    )
    mask = None
    if one.limits is not None:
        mask = torch.arange(len(one.key)) < one.limits[:, None]
    attended = F.scaled_dot_product_attention(
        query[None], key[None], value[None], mask, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_float64s(library: Library, shape: Shape, dtype: torch.dtype) -> None:
    one = attention_input(shape, dtype)
    attended, reference = attend(library, [one]).double(), expected(one)
    assert float((attended - reference).norm() / reference.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize("threads", [1, 3])
def test_sequences_of_different_lengths_share_a_call(library: Library, threads: int) -> None:
    sequences = [
        attention_input(Shape(queries, queries + start, 6, 2, 64, prefix), FLOAT32)
        for queries, start, prefix in [(40, 0, None), (1, 70, 0), (25, 3, 10), (2, 0, 0)]
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = attend(library, sequences)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat([attend(library, [one]) for one in sequences]))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_query_does_not_depend_on_the_others_or_on_later_keys(
    library: Library, dtype: torch.dtype
) -> None:
    one = attention_input(Shape(50, 81, 6, 2, 64, prefix=40), dtype)
    together = attend(library, [one])
    assert one.limits is not None
    for index in (0, 7, 30, 49):
        end = int(one.limits[index])
        alone = AttentionInput(one.query[index : index + 1], one.key[:end], one.value[:end])
        assert torch.equal(attend(library, [alone])[0], together[index])


def test_scores_of_any_size_give_finite_results(library: Library) -> None:
    one = attention_input(Shape(20, 20, 2, 2, 64, prefix=0), FLOAT32)
    for factor in (0.0, 1e-30, 1e4, 1e15):
        scaled = replace(one, query=one.query * factor)
        attended, reference = attend(library, [scaled]), expected(scaled)
        assert attended.isfinite().all()
        assert float((attended.double() - reference).norm() / reference.norm()) < 1e-3


def test_a_spoiled_query_spoils_only_itself(library: Library) -> None:
    one = attention_input(Shape(20, 20, 2, 2, 64), FLOAT32)
    clean = attend(library, [one])
    one.query[3, 1, 5] = torch.nan
    spoiled = attend(library, [one])
    assert not spoiled[3, 1].isfinite().any()
    spoiled[3, 1] = clean[3, 1]
    assert torch.equal(spoiled, clean)
