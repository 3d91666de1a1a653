"""A text model's way from tokens to logits: attention with rotary positions, whose keys and values
go straight to their rows of the engine's cache. What lies between, a family says as
:class:`DecoderSpec`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attention import STEP, Batch, CacheAttention, CachedPrefill, Decode, make_prefill
from models.flash import has_flash_attention
from models.fused import apply_rope_, has_fused_kernels
from models.graphs import ModelGraphs
from models.linear import Linear
from models.operations import apply_rope
from models.packed import (
    Packed,
    Sizes,
    address,
    can_be_packed,
    destinations,
    padded,
    share_an_arena,
)
from raylens.engine.model import KVRows, KVShape, ModelOutput, PrefillChunk
from raylens.engine.transfer import upload

Attend = Callable[[Tensor], Tensor]
"""Queries, keys and values of a layer, side by side (tokens, (heads + 2 · key heads) · head size),
to what attention makes of them (tokens, heads · head size)."""

_PIECES = 8
"""Into so many parts a row of the cache is cut where each length that is read costs a CUDA graph."""


@dataclass(frozen=True)
class Rotary:
    """``frequencies`` (head size / 2,), float32: a head's halves are the pairs that turn, and
    0 lets one stand still. ``sections``: how many of them follow each axis of the positions by
    turns, where there are several axes."""

    frequencies: Tensor
    scale: float = 1.0
    sections: Sequence[int] | None = None


@dataclass(frozen=True)
class DecoderSpec:
    """What a decoder is made of."""

    embed: Callable[[Tensor], Tensor]
    """Ids (tokens,) to (tokens, hidden)."""
    layers: Sequence[Callable[[Tensor, Attend], Tensor]]
    """Each takes states (tokens, hidden) to the next layer's."""
    norm: Callable[[Tensor], Tensor]
    head: Linear
    rotary: Rotary
    heads: int
    kv_shape: KVShape


class Decoder:
    """Reads tokens behind what rows of the cache hold."""

    def __init__(self, parts: DecoderSpec, graphs: ModelGraphs | None = None) -> None:
        self.kv_shape = shape = parts.kv_shape
        self._parts = parts
        self._graphs = graphs or ModelGraphs()
        self._heads, self._kv_heads = parts.heads, shape.heads
        rotary = parts.rotary
        self._axes = _axes(rotary.sections, len(rotary.frequencies), rotary.frequencies.device)
        device = torch.device(shape.device)
        self._on_gpu = device.type == "cuda"
        self._has_flash = has_flash_attention(device, shape.dtype, shape.head_dim)
        self._has_fused = has_fused_kernels(device, shape.dtype)

    def prefill(
        self, parts: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        """Implements :meth:`raylens.engine.model.Model.prefill`. Where tokens see each other, no
        slice can cut between them: it cuts between layers."""
        with torch.inference_mode():
            ends = np.cumsum([len(part.token_ids) for part in parts])
            states, turns = self._begin(parts, ends)
            last = self._numbers((ends - 1).tolist())
            replayed = (
                self._replayed(parts, rows(), states, turns) if len(states) <= tokens else None
            )
            if replayed is not None:
                return self._scores(replayed[last])
            prefill = make_prefill(self.kv_shape, self._heads, parts, self._on_gpu, self._has_flash)
        count = len(self._parts.layers)
        layers = max(1, tokens * count // len(states))
        for first in range(0, count, layers):
            if first:
                yield
            with torch.inference_mode():
                states = self._run(
                    states, turns, prefill.over(rows()), first, min(first + layers, count)
                )
        with torch.inference_mode():
            return self._scores(states[last])

    def _begin(
        self, parts: Sequence[PrefillChunk], ends: NDArray[np.int64]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What stands at each place of the parts (tokens, hidden), and the cosines and sines of its
        positions."""
        states = self._parts.embed(
            self._numbers([token for part in parts for token in part.token_ids])
        )
        for part, end in zip(parts, ends.tolist(), strict=True):
            start = end - len(part.token_ids)
            for at, shown in part.features:
                states[start + at : start + at + len(shown)] = shown
        positions = upload(
            np.concatenate([part.positions for part in parts], 1), self.kv_shape.device
        )
        return states, self._rope_cos_sin(positions, states.dtype)

    def _replayed(
        self,
        parts: Sequence[PrefillChunk],
        rows: Sequence[KVRows],
        states: Tensor,
        turns: tuple[Tensor, Tensor],
    ) -> Tensor | None:
        """The last layer's states, by a CUDA graph; None if these parts are for none."""
        if self._graphs.prefill is None or not (
            self._has_flash and can_be_packed(parts) and share_an_arena(rows)
        ):
            return None
        sizes, layers = Sizes.of(parts), rows[0].arena
        packed = Packed.cached(parts, rows, sizes, self.kv_shape.device)

        def step(
            states: Tensor, cos: Tensor, sin: Tensor, destination: Tensor, *tensors: Tensor
        ) -> Tensor:
            attention = CachedPrefill(layers, packed.of_tensors(*tensors), *destination)
            return self._run(states, (cos, sin), attention, 0, len(self._parts.layers))

        destination = destinations(parts, rows, sizes.tokens, self.kv_shape.device)
        given = [
            *(padded(tensor, sizes.tokens) for tensor in (states, *turns)),
            destination,
            *packed.tensors,
        ]
        return self._graphs.prefill.run((sizes, address(rows)), step, given)

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        """Implements :meth:`raylens.engine.model.Model.decode`."""
        lengths = [length for group in groups for length in group.lengths]
        if self._graphs.decode is None:
            batches = [
                Batch(group.layers, len(group.lengths), self._span(group)) for group in groups
            ]
            return self._scores(
                self._step(batches, token_ids, self._numbers(positions), self._numbers(lengths))
            )
        # Few sizes of batch, so that graphs serve again: rows that nobody holds fill up each group.
        batches = [
            Batch(group.layers, _filled(group), self._span(group, _PIECES)) for group in groups
        ]
        places = self._numbers(
            _places([len(group.lengths) for group in groups], [batch.rows for batch in batches])
        )
        given = torch.zeros(
            3, sum(batch.rows for batch in batches), dtype=torch.int64, device=token_ids.device
        )
        given[0, places] = token_ids
        given[1:, places] = upload(np.array([positions, lengths]), token_ids.device)
        states = self._graphs.decode.run(
            _addresses(batches), partial(self._step, batches), list(given)
        )
        return self._scores(states[places])

    def _span(self, group: KVRows, pieces: int = 1) -> int:
        """Tokens to read of each row; 0 if flash attention reads each as far as it goes."""
        return 0 if self._has_flash else _span(max(group.lengths) + 1, group, pieces)

    def _numbers(self, numbers: Sequence[int]) -> Tensor:
        return upload(numbers, self.kv_shape.device)

    def _step(
        self, batches: Sequence[Batch], token_ids: Tensor, positions: Tensor, lengths: Tensor
    ) -> Tensor:
        """Asks nothing but its tensors: a CUDA graph does it again without this code."""
        states = self._parts.embed(token_ids)
        attention = Decode(self.kv_shape, self._heads, batches, lengths)
        turns = self._rope_cos_sin(positions[None], states.dtype)
        return self._run(states, turns, attention, 0, len(self._parts.layers))

    def _run(
        self,
        states: Tensor,
        turns: tuple[Tensor, Tensor],
        attention: CacheAttention,
        first: int,
        end: int,
    ) -> Tensor:
        """Through the layers from ``first`` to ``end``."""
        cos, sin = turns
        heads = (-1, self.kv_shape.head_dim)

        def attend(layer: int, mixed: Tensor) -> Tensor:
            qkv = mixed.unflatten(-1, heads)
            if self._has_fused:
                apply_rope_(qkv, cos, sin, self._heads + self._kv_heads)
            else:
                qkv = apply_rope(qkv, cos, sin)
            return attention(
                layer,
                qkv[:, : self._heads],
                qkv[:, self._heads :].unflatten(1, (2, self._kv_heads)),
            )

        for index in range(first, end):
            states = self._parts.layers[index](states, partial(attend, index))
        return states

    def _scores(self, states: Tensor) -> ModelOutput:
        return ModelOutput(self._parts.head(self._parts.norm(states)).float(), states)

    def _rope_cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (tokens, all heads, head size) of rotary positions (axes,
        tokens); values' heads, which stand last, stay as they are. For the fused kernel, which
        knows as much, (tokens, head size / 2)."""
        rotary = self._parts.rotary
        angles = positions[..., None].float() * rotary.frequencies
        angles = (
            angles[0]
            if len(positions) == 1
            else angles.gather(0, self._axes.expand(1, angles.shape[1], -1))[0]
        )
        cos, sin = angles.cos() * rotary.scale, angles.sin() * rotary.scale
        if self._has_fused:
            return cos, sin
        turned = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        still = torch.ones_like(turned[0]), torch.zeros_like(turned[1])
        heads = self._heads + self._kv_heads
        made = (
            torch.cat(
                [t[:, None].expand(-1, heads, -1), s[:, None].expand(-1, self._kv_heads, -1)], 1
            ).to(dtype)
            for t, s in zip(turned, still, strict=True)
        )
        return next(made), next(made)


def _span(end: int, rows: KVRows, pieces: int = 1) -> int:
    """Tokens to read where ``end`` are held: whole steps, so that products are prepared for few
    shapes. Where there are ``pieces``, whole parts of the row's capacity."""
    capacity = rows.layers[0].shape[3]
    step = STEP if pieces == 1 else max(STEP, capacity // pieces)
    return min(-(-end // step) * step, capacity)


def _filled(group: KVRows) -> int:
    """The next power of two of its rows, as far as there are so many."""
    # Where a resize of the cache broke off, layers differ.
    return min(
        1 << (len(group.lengths) - 1).bit_length(), *(layer.shape[1] for layer in group.layers)
    )


def _places(counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Where the rows of several groups stand, of which each is filled up to its size."""
    starts = np.cumsum([0, *sizes])
    return [
        int(start) + row
        for start, count in zip(starts, counts, strict=False)
        for row in range(count)
    ]


def _addresses(batches: Sequence[Batch]) -> Hashable:
    """Where a step reads and writes keys and values, and in what shape."""
    shapes = [
        (batch.rows, batch.span, batch.layers[0].shape, batch.layers[0].stride())
        for batch in batches
    ]
    return (*shapes, *(layer.data_ptr() for batch in batches for layer in batch.layers))


def _axes(sections: Sequence[int] | None, frequencies: int, device: torch.device) -> Tensor:
    """Which axis of the positions each frequency turns with: (1, 1, frequencies). Sections take the
    axes by turns."""
    sections = sections or [frequencies]
    axes = [index % 3 for index, width in enumerate(sections) for _ in range(width)]
    return torch.tensor(axes, device=device)[None, None]
