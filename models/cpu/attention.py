"""Attention of many tokens, in C."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cpu.library import (
    MAX_HEAD_DIM,
    AttentionStruct,
    Library,
    SequenceStruct,
    host_library,
)


@dataclass(frozen=True)
class AttentionInput:
    """Tokens that attend to each other or to a cache's row.

    All are float32, or all bfloat16, and the values of a head follow each other in memory.
    """

    query: Tensor
    """(queries, query heads, head_dim)"""
    key: Tensor
    """(keys, kv heads, head_dim). Consecutive query heads share a kv head."""
    value: Tensor
    """(keys, kv heads, head_dim)"""
    limits: Tensor | None = None
    """int32 (queries,): each attends to as many keys, at least one, from the first on. None: to
    all."""


def attention_library(device: torch.device, dtype: torch.dtype, head_dim: int) -> Library | None:
    """Return the library whose :func:`attend` is the fastest on a device; None if torch's attention
    is, or if there is no library."""
    is_supported = dtype in (torch.float32, torch.bfloat16) and head_dim <= MAX_HEAD_DIM
    if device.type != "cpu" or not is_supported or head_dim % 2:
        return None
    if dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return None
    return host_library()


def attend(library: Library, inputs: Sequence[AttentionInput]) -> Tensor:
    """Return softmax attention, (all queries, query heads, head_dim), of inputs with equal heads.

    A query's result depends on its own keys only.
    """
    num_queries = [len(one.query) for one in inputs]
    heads = inputs[0].query.shape[1:]
    target = inputs[0].query.new_empty(sum(num_queries), *heads)
    structs = (SequenceStruct * len(inputs))(*map(_sequence, inputs, target.split(num_queries)))
    call = AttentionStruct(
        sequences=structs,
        num_sequences=len(inputs),
        query_heads=heads[0],
        kv_heads=inputs[0].key.shape[1],
        head_dim=heads[1],
        is_bf16=target.dtype is torch.bfloat16,
        threads=torch.get_num_threads(),
    )
    scratch = torch.empty(library.attention_scratch_bytes(byref(call)), dtype=torch.uint8)
    call.scratch = scratch.data_ptr()
    library.attention_run(byref(call))
    return target


def _sequence(one: AttentionInput, target: Tensor) -> SequenceStruct:
    query, key, value = one.query, one.key, one.value
    assert {states.stride(-1) for states in (query, key, value)} == {1}
    return SequenceStruct(
        queries=query.data_ptr(),
        keys=key.data_ptr(),
        values=value.data_ptr(),
        target=target.data_ptr(),
        limits=None if one.limits is None else one.limits.data_ptr(),
        query_stride=query.stride(0),
        query_head_stride=query.stride(1),
        key_stride=key.stride(0),
        key_head_stride=key.stride(1),
        value_stride=value.stride(0),
        value_head_stride=value.stride(1),
        num_queries=len(query),
        num_keys=len(key),
    )
