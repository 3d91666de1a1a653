"""A text model's way from tokens to logits: attention with rotary positions, whose keys and values go straight to
their rows of the engine's cache. What lies between, a family says as :class:`Parts`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.graphs import Graphs
from models.linear import Linear
from models.operations import attention, turn
from raylens.engine.model import KVRows, KVShape, Part, Scores

Attend = Callable[[Tensor], Tensor]
"""Queries, keys and values of a layer, side by side (tokens, (heads + 2 · key heads) · head size), to what attention
makes of them (tokens, heads · head size)."""
Mix = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, queries (tokens, heads, head size), keys and values (tokens, 2, heads, head size)) -> (tokens, heads · head
size)."""

_SPAN = 32
_SPANS = 8
"""Into so many parts a row of the cache is cut where each length that is read costs a CUDA graph."""


@dataclass(frozen=True)
class Rotary:
    """``frequencies`` (head size / 2,), float32: a head's halves are the pairs that turn, and 0 lets one stand still.
    ``sections``: how many of them follow each axis of the positions by turns, where there are several axes."""

    frequencies: Tensor
    scale: float = 1.0
    sections: Sequence[int] | None = None


@dataclass(frozen=True)
class Parts:
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

    def __init__(self, parts: Parts, graphs: Graphs | None = None) -> None:
        self.kv_shape = parts.kv_shape
        self._parts = parts
        self._graphs = graphs
        self._heads, self._kv_heads = parts.heads, parts.kv_shape.heads
        rotary = parts.rotary
        self._axes = _axes(rotary.sections, len(rotary.frequencies), rotary.frequencies.device)

    def prefill(self, part: Part, row: Callable[[], KVRows], tokens: int) -> Generator[None, None, Scores]:
        """Implements :meth:`raylens.engine.model.Model.prefill`. Where tokens see each other, no slice can cut between
        them: it cuts between layers."""
        with torch.inference_mode():
            states = self._parts.embed(self._numbers(part.token_ids))
            for at, shown in part.features:
                states[at : at + len(shown)] = shown
            new, bias = len(states), self._part_bias(part, row())
            turns = self._turns(torch.from_numpy(part.positions), states.dtype)
        count = len(self._parts.layers)
        layers = max(1, tokens * count // new)
        for first in range(0, count, layers):
            if first:
                yield
            with torch.inference_mode():
                mix = self._part_mix(part.start, new, row(), bias)
                states = self._run(states, turns, mix, first, min(first + layers, count))
        with torch.inference_mode():
            return self._scores(states[-1:])

    def _part_bias(self, part: Part, row: KVRows) -> Tensor:
        """What shuts out the keys behind each of a part's tokens, for all heads that share a key one behind another."""
        new = len(part.token_ids)
        span, shared = _span(part.start + new, row), self._heads // self._kv_heads
        later = torch.ones((new, span), dtype=torch.bool, device=self.kv_shape.device).triu(part.start + 1)
        later[: max(0, part.whole - part.start), : part.whole] = False
        return _shutting(later, self.kv_shape.dtype).repeat(shared, 1)

    def _part_mix(self, start: int, new: int, row: KVRows, bias: Tensor) -> Mix:
        span, shared = bias.shape[1], self._heads // self._kv_heads

        def mix(layer: int, query: Tensor, new_pairs: Tensor) -> Tensor:
            pairs = row.layers[layer][:, :, :, :span]
            pairs[:, 0, :, start : start + new] = new_pairs.permute(1, 2, 0, 3)
            # The heads that share a key stand one behind another in the place of query positions.
            queries = query.unflatten(1, (-1, shared)).permute(1, 2, 0, 3).flatten(1, 2)
            mixed = attention(queries[None], pairs[0], pairs[1], bias)[0]
            return mixed.unflatten(1, (shared, new)).permute(2, 0, 1, 3).flatten(1)

        return mix

    def decode(self, token_ids: Sequence[int], positions: Sequence[int], groups: Sequence[KVRows]) -> Scores:
        """Implements :meth:`raylens.engine.model.Model.decode`."""
        lengths = [length for group in groups for length in group.lengths]
        numbers = token_ids, positions, lengths
        layers = [group.layers for group in groups]
        if self._graphs is None:
            shapes = [(len(group.lengths), _span(max(group.lengths) + 1, group)) for group in groups]
            return self._scores(self._step(layers, shapes, *map(self._numbers, numbers)))
        # Few sizes of batch, so that graphs serve again: rows that nobody holds fill up each group.
        shapes = [(_filled(group), _span(max(group.lengths) + 1, group, _SPANS)) for group in groups]
        sizes = [(len(group.lengths), rows) for group, (rows, _) in zip(groups, shapes, strict=True)]
        given = [self._numbers(_spread(row, sizes)) for row in numbers]
        states = self._graphs.run(_addresses(layers, shapes), partial(self._step, layers, shapes), given)
        return self._scores(states[np.flatnonzero(_spread([1] * len(lengths), sizes))])

    def _numbers(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.kv_shape.device)

    def _step(
        self,
        layers: Sequence[Sequence[Tensor]],
        shapes: Sequence[tuple[int, int]],
        token_ids: Tensor,
        positions: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """``shapes``: the rows of each group, and the tokens of each row that are read. Else it asks nothing but its
        tensors: a CUDA graph does it again without this code."""
        held = lengths.split([rows for rows, _ in shapes])
        places = [_Place(*place) for place in zip(layers, [span for _, span in shapes], held, strict=True)]
        shared = (self._kv_heads, self._heads // self._kv_heads)

        def mix(layer: int, query: Tensor, new_pairs: Tensor) -> Tensor:
            query = query.unflatten(1, shared)
            mixed, first = [], 0
            for place in places:
                rows = slice(first, first + place.rows)
                pairs = place.append(layer, new_pairs[rows])
                mixed.append(attention(query[rows], pairs[0], pairs[1], place.bias))
                first += place.rows
            return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1)

        states = self._parts.embed(token_ids)
        turns = self._turns(positions[None], states.dtype)
        return self._run(states, turns, mix, 0, len(self._parts.layers))

    def _run(self, states: Tensor, turns: tuple[Tensor, Tensor], mix: Mix, first: int, end: int) -> Tensor:
        """Through the layers from ``first`` to ``end``."""
        cos, sin = turns
        heads = (-1, self.kv_shape.head_dim)

        def attend(layer: int, mixed: Tensor) -> Tensor:
            qkv = turn(mixed.unflatten(-1, heads), cos, sin)
            return mix(layer, qkv[:, : self._heads], qkv[:, self._heads :].unflatten(1, (2, self._kv_heads)))

        for index in range(first, end):
            states = self._parts.layers[index](states, partial(attend, index))
        return states

    def _scores(self, states: Tensor) -> Scores:
        return Scores(self._parts.head(self._parts.norm(states)).float(), states)

    def _turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (tokens, all heads, head size) of rotary positions (axes, tokens); values' heads,
        which stand last, stay as they are."""
        rotary = self._parts.rotary
        angles = positions.to(self._axes.device)[..., None].float() * rotary.frequencies
        angles = angles[0] if len(positions) == 1 else angles.gather(0, self._axes.expand(1, angles.shape[1], -1))[0]
        cos, sin = angles.cos() * rotary.scale, angles.sin() * rotary.scale
        turned = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        still = torch.ones_like(turned[0]), torch.zeros_like(turned[1])
        heads = self._heads + self._kv_heads
        made = (
            torch.cat([t[:, None].expand(-1, heads, -1), s[:, None].expand(-1, self._kv_heads, -1)], 1).to(dtype)
            for t, s in zip(turned, still, strict=True)
        )
        return next(made), next(made)


class _Place:
    """Where a group's newest tokens are written, and what each of its rows attends to."""

    def __init__(self, layers: Sequence[Tensor], span: int, lengths: Tensor) -> None:
        self._layers = layers
        self.rows = len(lengths)
        self._span = span
        self._at = lengths
        self._index = torch.arange(self.rows, device=lengths.device)
        later = torch.arange(span, device=lengths.device) > lengths[:, None]
        self.bias = _shutting(later, layers[0].dtype)[:, None, None]

    def append(self, layer: int, pairs: Tensor) -> Tensor:
        """Writes (rows, 2, heads, head size); all keys and values (2, rows, heads, tokens, head size)."""
        held = self._layers[layer]
        held[:, self._index, :, self._at] = pairs
        return held[:, : self.rows, :, : self._span]


def _span(end: int, rows: KVRows, pieces: int = 1) -> int:
    """Tokens to read where ``end`` are held: whole steps, so that products are prepared for few shapes. Where there are
    ``pieces``, whole parts of the row's capacity."""
    capacity = rows.layers[0].shape[3]
    step = _SPAN if pieces == 1 else max(_SPAN, capacity // pieces)
    return min(-(-end // step) * step, capacity)


def _filled(group: KVRows) -> int:
    """The next power of two of its rows, as far as there are so many."""
    # Where a resize of the cache broke off, layers differ.
    return min(1 << (len(group.lengths) - 1).bit_length(), *(layer.shape[1] for layer in group.layers))


def _spread(numbers: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The numbers of several groups, (how many, how many there should be) each, filled up with zeros."""
    waiting = iter(numbers)
    return [next(waiting) if place < count else 0 for count, size in sizes for place in range(size)]


def _addresses(layers: Sequence[Sequence[Tensor]], shapes: Sequence[tuple[int, int]]) -> Hashable:
    """Where a step reads and writes keys and values, and in what shape."""
    return tuple(
        (shape, held[0].shape, *(layer.data_ptr() for layer in held))
        for held, shape in zip(layers, shapes, strict=True)
    )


def _shutting(out: Tensor, dtype: torch.dtype) -> Tensor:
    """What shuts out the keys where this is true, as a bias of attention's scores."""
    return torch.zeros(out.shape, dtype=dtype, device=out.device).masked_fill_(out, -torch.inf)


def _axes(sections: Sequence[int] | None, frequencies: int, device: torch.device) -> Tensor:
    """Which axis of the positions each frequency turns with: (1, 1, frequencies). Sections take the axes by turns."""
    sections = sections or [frequencies]
    axes = [index % 3 for index, width in enumerate(sections) for _ in range(width)]
    return torch.tensor(axes, device=device)[None, None]
