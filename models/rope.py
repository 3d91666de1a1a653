"""Rotary position embeddings (Su et al. 2021), with one axis of positions or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.fused import apply_rope_, has_fused_kernels
from models.operations import apply_rope
from raylens.engine.model import KVShape

CosSin = tuple[Tensor, Tensor]
"""Cosines and sines of a step's positions, in the layout that :class:`RotaryEmbedding` applies."""


@dataclass(frozen=True)
class Rotary:
    """The parameters of a checkpoint's rotary embedding."""

    frequencies: Tensor
    """float32 (head size / 2,). A head's halves form the pairs; frequency 0 leaves a pair alone."""
    scale: float = 1.0
    """Multiplies cosines and sines."""
    sections: Sequence[int] | None = None
    """How many frequencies follow each axis, the axes taken in turn; None if there is one axis."""


class RotaryEmbedding:
    """Rotates the queries and keys of a fused query-key-value product.

    Heads stand in the order queries, keys, values; the values' heads stay as they are.
    """

    def __init__(self, rotary: Rotary, heads: int, shape: KVShape) -> None:
        self._rotary = rotary
        self._axis_of_frequency = _axis_of_frequency(rotary)
        self._rotated_heads = heads + shape.heads
        self._kv_heads = shape.heads
        self._dtype = shape.dtype
        self._has_fused_kernels = has_fused_kernels(torch.device(shape.device), shape.dtype)

    def cos_sin(self, positions: Tensor) -> CosSin:
        """Return the cosines and sines of positions (axes, tokens).

        The fused kernel takes them as float32 (tokens, head size / 2). The plain operation takes
        them for every head, (tokens, all heads, head size): 1 and 0 for the values' heads, and
        sines negated for the first half of a head.
        """
        angles = self._angles(positions)
        cos = angles.cos() * self._rotary.scale
        sin = angles.sin() * self._rotary.scale
        if self._has_fused_kernels:
            return cos, sin
        cos = torch.cat([cos, cos], -1)
        sin = torch.cat([-sin, sin], -1)
        cos = self._for_all_heads(cos, unrotated=torch.ones_like(cos))
        sin = self._for_all_heads(sin, unrotated=torch.zeros_like(sin))
        return cos, sin

    def apply(self, qkv: Tensor, cos_sin: CosSin) -> Tensor:
        """Rotate (tokens, all heads, head size), perhaps in place."""
        cos, sin = cos_sin
        if self._has_fused_kernels:
            return apply_rope_(qkv, cos, sin, self._rotated_heads)
        return apply_rope(qkv, cos, sin)

    def _angles(self, positions: Tensor) -> Tensor:
        """Return (tokens, head size / 2), each frequency times the position on its own axis."""
        angles = positions[..., None].float() * self._rotary.frequencies
        if len(positions) == 1:
            return angles[0]
        axes = self._axis_of_frequency.expand(1, angles.shape[1], -1)
        return angles.gather(0, axes)[0]

    def _for_all_heads(self, rotated: Tensor, unrotated: Tensor) -> Tensor:
        """Repeat (tokens, head size) for queries and keys, and ``unrotated`` for values."""
        queries_and_keys = rotated[:, None].expand(-1, self._rotated_heads, -1)
        values = unrotated[:, None].expand(-1, self._kv_heads, -1)
        return torch.cat([queries_and_keys, values], 1).to(self._dtype)


def _axis_of_frequency(rotary: Rotary) -> Tensor:
    """Return the axis of positions that each frequency follows, (1, 1, frequencies)."""
    sections = rotary.sections or [len(rotary.frequencies)]
    axes = [index % 3 for index, width in enumerate(sections) for _ in range(width)]
    return torch.tensor(axes, device=rotary.frequencies.device)[None, None]
