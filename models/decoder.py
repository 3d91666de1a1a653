"""The text model of Llama's and Qwen2's kind, over its weights in transformers' modules: a lean path to its logits.

A layer is: root mean square norm, grouped-query attention with rotary positions, norm, gated MLP (``modeling_llama.py``
and ``modeling_qwen2_5_vl.py`` in transformers). Query, key and value are one product here, gate and up another; keys
and values go straight to their rows of the engine's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.graphs import Graphs
from models.linear import Linear, Packer
from models.operations import attention, turn
from raylens.engine.model import KVRows, KVShape

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, queries (tokens, heads, head size), keys and values (tokens, 2, heads, head size)) -> (tokens, heads · head
size)."""

_SPAN = 32
_SPANS = 8
"""Into so many parts a row of the cache is cut where each length that is read costs a CUDA graph."""


@dataclass(frozen=True)
class Layer:
    attention_norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """Reads tokens' embeddings behind what rows of the cache hold."""

    def __init__(self, text_model: nn.Module, head: nn.Linear, packer: Packer, graphs: Graphs | None = None) -> None:
        model: Any = text_model
        self._graphs = graphs
        config = model.config
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // self._heads)
        self._eps = float(config.rms_norm_eps)
        self._embeddings = packer.tensor(model.get_input_embeddings().weight)
        self._inverse_frequencies = packer.tensor(model.rotary_emb.inv_freq).float()
        self._rope_scale = float(model.rotary_emb.attention_scaling)
        sections = (config.rope_parameters or {}).get("mrope_section")
        self._axes = _axes(sections, self._head_dim, self._embeddings.device)
        self._layers = [_layer(layer, packer) for layer in model.layers]
        self._norm = packer.tensor(model.norm.weight)
        self.vocabulary = int(head.weight.shape[0])
        self._head = packer.linear(head)
        self.kv_shape = KVShape(
            len(self._layers), self._kv_heads, self._head_dim, self._embeddings.dtype, str(self._embeddings.device)
        )

    def prefill(
        self,
        token_ids: Sequence[int],
        features: Sequence[tuple[int, Tensor]],
        positions: NDArray[np.int64],
        row: KVRows,
    ) -> Tensor:
        """Implements :meth:`raylens.engine.model.Model.prefill`."""
        states = F.embedding(self._numbers(token_ids), self._embeddings)
        for at, shown in features:
            states[at : at + len(shown)] = shown
        start, new = row.lengths[0], len(states)
        end = start + new
        span = _span(end, row)
        shared = self._heads // self._kv_heads
        # The heads that share a key stand one behind another in the place of query positions.
        later = torch.ones((new, span), dtype=torch.bool, device=states.device).triu(start + 1)
        bias = _shutting(later, states.dtype).repeat(shared, 1)

        def attend(layer: int, query: Tensor, new_pairs: Tensor) -> Tensor:
            pairs = row.layers[layer][:, :, :, :span]
            pairs[:, 0, :, start:end] = new_pairs.permute(1, 2, 0, 3)
            queries = query.unflatten(1, (-1, shared)).permute(1, 2, 0, 3).flatten(1, 2)
            mixed = attention(queries[None], pairs[0], pairs[1], bias)[0]
            return mixed.unflatten(1, (shared, new)).permute(2, 0, 1, 3).flatten(1)

        return self._logits(self._run(states, torch.from_numpy(positions), attend)[-1:])[0]

    def decode(self, token_ids: Sequence[int], positions: Sequence[int], groups: Sequence[KVRows]) -> Tensor:
        """Implements :meth:`raylens.engine.model.Model.decode`."""
        lengths = [length for group in groups for length in group.lengths]
        numbers = token_ids, positions, lengths
        layers = [group.layers for group in groups]
        if self._graphs is None:
            shapes = [(len(group.lengths), _span(max(group.lengths) + 1, group)) for group in groups]
            return self._step(layers, shapes, *map(self._numbers, numbers))
        # Few sizes of batch, so that graphs serve again: rows that nobody holds fill up each group.
        shapes = [(_filled(group), _span(max(group.lengths) + 1, group, _SPANS)) for group in groups]
        sizes = [(len(group.lengths), rows) for group, (rows, _) in zip(groups, shapes, strict=True)]
        given = [self._numbers(_spread(row, sizes)) for row in numbers]
        logits = self._graphs.run(_addresses(layers, shapes), partial(self._step, layers, shapes), given)
        return logits[np.flatnonzero(_spread([1] * len(lengths), sizes))]

    def _numbers(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._embeddings.device)

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

        def attend(layer: int, query: Tensor, new_pairs: Tensor) -> Tensor:
            query = query.unflatten(1, shared)
            mixed, first = [], 0
            for place in places:
                rows = slice(first, first + place.rows)
                pairs = place.append(layer, new_pairs[rows])
                mixed.append(attention(query[rows], pairs[0], pairs[1], place.bias))
                first += place.rows
            return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).flatten(1)

        states = F.embedding(token_ids, self._embeddings)
        return self._logits(self._run(states, positions[None], attend))

    def _run(self, states: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        cos, sin = self._turns(positions, states.dtype)
        heads = (-1, self._head_dim)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(self._normed(states, layer.attention_norm)).unflatten(-1, heads)
            qkv = turn(qkv, cos, sin)
            pairs = qkv[:, self._heads :].unflatten(1, (2, self._kv_heads))
            states = layer.out(attend(index, qkv[:, : self._heads], pairs), states)
            gate, up = layer.gate_up(self._normed(states, layer.mlp_norm)).chunk(2, -1)
            states = layer.down(F.silu(gate) * up, states)
        return states

    def _logits(self, states: Tensor) -> Tensor:
        return self._head(self._normed(states, self._norm)).float()

    def _normed(self, states: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(states, weight.shape, weight, self._eps)

    def _turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines (tokens, all heads, head size) of rotary positions (axes, tokens); values' heads,
        which stand last, stay as they are."""
        angles = positions.to(self._axes.device)[..., None].float() * self._inverse_frequencies
        angles = angles[0] if len(positions) == 1 else angles.gather(0, self._axes.expand(1, angles.shape[1], -1))[0]
        cos, sin = angles.cos() * self._rope_scale, angles.sin() * self._rope_scale
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


def _layer(layer: Any, packer: Packer) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=packer.tensor(layer.input_layernorm.weight),
        qkv=packer.linear(attention.q_proj, attention.k_proj, attention.v_proj),
        out=packer.linear(attention.o_proj),
        mlp_norm=packer.tensor(layer.post_attention_layernorm.weight),
        gate_up=packer.linear(mlp.gate_proj, mlp.up_proj),
        down=packer.linear(mlp.down_proj),
    )


def _axes(sections: Sequence[int] | None, head_dim: int, device: torch.device) -> Tensor:
    """Which axis of the positions each frequency turns with: (1, 1, frequencies). Sections take the axes by turns."""
    sections = sections or [head_dim // 2]
    axes = [index % 3 for index, width in enumerate(sections) for _ in range(width)]
    return torch.tensor(axes, device=device)[None, None]
