"""Rotary position embeddings (Su et al. 2021), with one axis of positions or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.fused import apply_rope_, has_fused_kernels
from models.operations import apply_rope
from raylens.engine.model import KVSpec

CosSin = tuple[Tensor, Tensor]
"""Cosines and sines of a step's positions, in the layout that :class:`RotaryEmbedding` applies."""


@dataclass(frozen=True)
class RopeParameters:
    """The parameters of a checkpoint's rotary embedding."""

    frequencies: Tensor
    """float32 (head_dim / 2,). The halves of a head form the pairs. Frequency 0 leaves a pair
    unrotated."""
    scale: float = 1.0
    """Multiplies cosines and sines."""
    sections: Sequence[int] | None = None
    """How many frequencies follow each axis, the axes taken in turn; None if there is one axis."""


class RotaryEmbedding:
    """Rotates the queries and keys of a fused query-key-value product.

    Heads are in the order queries, keys, values. Value heads are not rotated.
    """

    def __init__(self, rope: RopeParameters, num_query_heads: int, shape: KVSpec) -> None:
        self._rope = rope
        self._axis_of_frequency = _axis_of_frequency(rope)
        self._num_rotated_heads = num_query_heads + shape.num_kv_heads
        self._num_kv_heads = shape.num_kv_heads
        self._dtype = shape.dtype
        self._has_fused_kernels = has_fused_kernels(torch.device(shape.device), shape.dtype)

    def cos_sin(self, positions: Tensor) -> CosSin:
        """Return the cosines and sines of positions (axes, tokens).

        The fused kernel takes them as float32 (tokens, head_dim / 2). The plain operation takes
        them for every head, (tokens, all heads, head_dim): 1 and 0 for the values' heads, and
        sines negated for the first half of a head.
        """
        cos, sin = self.pair_cos_sin(positions)
        if self._has_fused_kernels:
            return cos, sin
        cos = torch.cat([cos, cos], -1)
        sin = torch.cat([-sin, sin], -1)
        cos = self._for_all_heads(cos, unrotated=torch.ones_like(cos))
        sin = self._for_all_heads(sin, unrotated=torch.zeros_like(sin))
        return cos, sin

    def pair_cos_sin(self, positions: Tensor) -> CosSin:
        """Return those of each pair of a head's values, both float32 (tokens, head_dim / 2)."""
        angles = self._angles(positions)
        return angles.cos() * self._rope.scale, angles.sin() * self._rope.scale

    def apply(self, qkv: Tensor, cos_sin: CosSin) -> Tensor:
        """Rotate (tokens, all heads, head_dim), perhaps in place."""
        cos, sin = cos_sin
        if self._has_fused_kernels:
            return apply_rope_(qkv, cos, sin, self._num_rotated_heads)
        return apply_rope(qkv, cos, sin)

    def _angles(self, positions: Tensor) -> Tensor:
        """Return (tokens, head_dim / 2), each frequency times the position on its own axis."""
        angles = positions[..., None].float() * self._rope.frequencies
        if len(positions) == 1:
            return angles[0]
        axes = self._axis_of_frequency.expand(1, angles.shape[1], -1)
        return angles.gather(0, axes)[0]

    def _for_all_heads(self, rotated: Tensor, unrotated: Tensor) -> Tensor:
        """Repeat (tokens, head_dim) for queries and keys, and ``unrotated`` for values."""
        queries_and_keys = rotated[:, None].expand(-1, self._num_rotated_heads, -1)
        values = unrotated[:, None].expand(-1, self._num_kv_heads, -1)
        return torch.cat([queries_and_keys, values], 1).to(self._dtype)


def _axis_of_frequency(rope: RopeParameters) -> Tensor:
    """Return the axis of positions that each frequency follows, (1, 1, frequencies)."""
    sections = rope.sections or [len(rope.frequencies)]
    axes = [index % 3 for index, width in enumerate(sections) for _ in range(width)]
    return torch.tensor(axes, device=rope.frequencies.device)[None, None]
