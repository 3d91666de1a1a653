"""Operations that several families' layers are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fused import has_fused_kernels, silu_and_mul

_ROWS = 256
_SCORES = 1 << 21
"""Attention's scores that are worked out at a time: few enough to stay in the cores' caches."""
_FEW = 16
"""Queries that stand to the right of the keys in their product: so it is twice as fast."""
_WORTHWHILE = 1 << 16
"""ModelOutput from which on products are faster than the fused kernel."""
_LARGEST = 1 << 24
"""ModelOutput of one head that products take memory for; the fused kernel takes none."""


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of queries (batch, heads, queries, head size) to keys and values (batch,
    heads, keys, head size); ``bias`` (…, queries or 1, keys) is added to the scores, of which −∞
    shuts one out."""
    scores = query.shape[0] * query.shape[2] * key.shape[2]
    is_worthwhile = scores * query.shape[1] >= _WORTHWHILE and scores <= _LARGEST
    if not is_worthwhile or not _by_products(query.device, query.dtype):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    count = max(1, _SCORES // scores)
    parts = [
        _attend(*part, bias)
        for part in zip(
            query.split(count, 1), key.split(count, 1), value.split(count, 1), strict=True
        )
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    query = query * query.shape[-1] ** -0.5
    if query.shape[2] < _FEW:
        scores = torch.matmul(key, query.transpose(-1, -2)).transpose(-1, -2).contiguous()
    else:
        scores = torch.matmul(query, key.transpose(-1, -2))
    if bias is not None:
        scores += bias
    return torch.matmul(torch.softmax(scores, -1), value)


@cache
def _by_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether plain products outrun the fused kernel: on CPUs that multiply bfloat16, but not in
    tiles (AMX), which is what that kernel was made for."""
    return (
        device.type == "cpu"
        and dtype is torch.bfloat16
        and torch.cpu._is_avx512_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )


def apply_rope(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) of (tokens, heads, head size): a head's halves are the
    pairs, and ``sin`` is negative for the first half."""
    halves = states.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(states * cos, halves, sin)


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) · up`` of (rows, 2 · width), the gates first: (rows, width) (Shazeer 2020)."""
    if has_fused_kernels(gate_up.device, gate_up.dtype):
        return silu_and_mul(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def normalized(pixels: Tensor, scale: float, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (…, channels, height, width) of 0 to 255 as the image processors of transformers give
    them, float32."""
    average, spread = _normal(pixels.device, tuple(mean), tuple(std))
    return (pixels.float() * scale - average) / spread


@cache
def _normal(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Of each channel (channels, 1, 1)."""
    average, spread = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    return average, spread


def by_rows(layers: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, states: Tensor) -> Tensor:
    """``layers(inputs, states)`` for (rows, …) of both. A CPU does some rows at a time, in place:
    what lies between several layers stays in the cores' caches, and oneDNN, which leaves cores idle
    on some taller products, keeps all at work."""
    if states.device.type != "cpu":
        return layers(inputs, states)
    for given, part in zip(inputs.split(_ROWS), states.split(_ROWS), strict=True):
        part.copy_(layers(given, part))
    return states
