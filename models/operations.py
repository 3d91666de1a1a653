"""Operations that the layers of several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fused import has_fused_kernels, silu_and_mul

_BLOCK_ROWS = 256
"""Rows that ``apply_in_row_blocks`` computes at a time on a CPU."""
_BLOCK_SCORES = 1 << 21
"""Attention scores that are computed at a time: few enough to stay in the cores' caches."""
_FEW_QUERIES = 16
"""Below so many queries, keys · queriesᵀ is twice as fast as queries · keysᵀ."""
_MIN_SCORES = 1 << 16
"""Scores of all heads from which plain products are faster than the fused kernel."""
_MAX_SCORES = 1 << 24
"""Scores of one head up to which plain products may take memory; the fused kernel takes none."""


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of queries (batch, heads, queries, head_dim) to keys and values (batch,
    heads, keys, head_dim).

    ``bias`` (…, queries or 1, keys) is added to the scores; −∞ masks a key.
    """
    scores = query.shape[0] * query.shape[2] * key.shape[2]
    use_products = scores * query.shape[1] >= _MIN_SCORES and scores <= _MAX_SCORES
    if not use_products or not _has_fast_products(query.device, query.dtype):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    heads = max(1, _BLOCK_SCORES // scores)
    blocks = zip(query.split(heads, 1), key.split(heads, 1), value.split(heads, 1), strict=True)
    attended = [_attend_by_products(*block, bias) for block in blocks]
    return attended[0] if len(attended) == 1 else torch.cat(attended, 1)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    query = query * query.shape[-1] ** -0.5
    if query.shape[2] < _FEW_QUERIES:
        scores = torch.matmul(key, query.transpose(-1, -2)).transpose(-1, -2).contiguous()
    else:
        scores = torch.matmul(query, key.transpose(-1, -2))
    if bias is not None:
        scores += bias
    return torch.matmul(torch.softmax(scores, -1), value)


@cache
def _has_fast_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether plain products are faster than the fused kernel.

    They are on CPUs that multiply bfloat16 without tiles (AMX); the kernel is made for tiles.
    """
    return (
        device.type == "cpu"
        and dtype is torch.bfloat16
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )


def apply_rope(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions (Su et al. 2021) to states (tokens, heads, head_dim).

    A rotated pair has one value in each half of a head. ``sin`` is negated in the first half.
    """
    swapped = states.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(states * cos, swapped, sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) · up`` (rows, width) of (rows, 2 · width), the gates first (Shazeer
    2020)."""
    if has_fused_kernels(gate_up.device, gate_up.dtype):
        return silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def normalize_pixels(
    pixels: Tensor, scale: float, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Scale and normalize pixels (…, channels, height, width) of 0 to 255 as transformers' image
    processors do. Returns float32."""
    channel_mean = _per_channel(tuple(mean), pixels.device)
    channel_std = _per_channel(tuple(std), pixels.device)
    return (pixels.float() * scale - channel_mean) / channel_std


@cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the values as (channels, 1, 1)."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def apply_in_row_blocks(
    layers: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, states: Tensor
) -> Tensor:
    """Return ``layers(inputs, states)``, both (rows, …).

    On a CPU, blocks of rows are computed in turn, and overwrite ``states``. This keeps intermediate
    results in the cores' caches, and oneDNN, which leaves cores idle at some taller products, keeps
    all of them busy.
    """
    if states.device.type != "cpu":
        return layers(inputs, states)
    blocks = zip(inputs.split(_BLOCK_ROWS), states.split(_BLOCK_ROWS), strict=True)
    for input_block, state_block in blocks:
        state_block.copy_(layers(input_block, state_block))
    return states
