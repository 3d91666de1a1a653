"""A decoder-only text model: tokens and image features in, logits out.

A family describes its weights in a :class:`DecoderSpec`. The decoder embeds tokens, runs the
layers, and applies the final norm and the head. Attention and the KV cache are the
:class:`models.attention.AttentionBackend`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from models.attention import AttentionBackend, CacheAttention, DecodeBatch
from models.graphs import ModelGraphs
from models.linear import Linear
from models.packed import (
    CacheAddresses,
    PackedChunks,
    PaddedSizes,
    arena_key,
    can_be_packed,
    pad_tokens,
    share_an_arena,
)
from models.rope import CosSin, Rotary
from raylens.engine.model import KVRows, KVShape, ModelOutput, PrefillChunk
from raylens.engine.transfer import upload

DecoderLayer = Callable[[Tensor, int, CacheAttention], Tensor]
"""Takes states (tokens, hidden), a layer index and the step's attention; returns new states."""

_GRAPH_SECTIONS = 8
"""Without flash attention, CUDA graphs are captured for this many lengths of a cache row."""


@dataclass(frozen=True)
class DecoderSpec:
    """A family's weights, and the shapes of its attention."""

    embed: Callable[[Tensor], Tensor]
    """Token ids (tokens,) to states (tokens, hidden)."""
    layers: Sequence[DecoderLayer]
    norm: Callable[[Tensor], Tensor]
    head: Linear
    rotary: Rotary
    heads: int
    kv_shape: KVShape


class Decoder:
    """Runs prefill and decode steps. Not thread-safe."""

    def __init__(self, spec: DecoderSpec, graphs: ModelGraphs | None = None) -> None:
        self.kv_shape = spec.kv_shape
        self._spec = spec
        self._graphs = graphs or ModelGraphs()
        self._attention = AttentionBackend(spec.kv_shape, spec.heads, spec.rotary)

    def prefill(
        self, chunks: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        """See :meth:`raylens.engine.model.Model.prefill`.

        Slices are cut between layers: a bidirectional prefix can't be cut between tokens.
        """
        with torch.inference_mode():
            states = self._embed_chunks(chunks)
            cos_sin = self._cos_sin(np.concatenate([chunk.positions for chunk in chunks], 1))
            ends = accumulate(len(chunk.token_ids) for chunk in chunks)
            last_tokens = self._upload([end - 1 for end in ends])
            if len(states) <= tokens and self._can_replay_prefill(chunks, rows()):
                states = self._replay_prefill(chunks, rows(), states, cos_sin)
                return self._output(states[last_tokens])
            attention = self._attention.prefill(chunks, cos_sin)
        layers = len(self._spec.layers)
        layers_per_slice = max(1, tokens * layers // len(states))
        for first in range(0, layers, layers_per_slice):
            if first:
                yield
            with torch.inference_mode():
                attention.rows = rows()
                stop = min(first + layers_per_slice, layers)
                states = self._run_layers(range(first, stop), states, attention)
        with torch.inference_mode():
            return self._output(states[last_tokens])

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        """See :meth:`raylens.engine.model.Model.decode`."""
        lengths = [length for rows in groups for length in rows.lengths]
        if self._graphs.decode is not None:
            return self._output(self._replay_decode(token_ids, positions, lengths, groups))
        batches = [self._attention.decode_batch(rows) for rows in groups]
        states = self._decode_step(
            batches, token_ids, self._upload(positions), self._upload(lengths)
        )
        return self._output(states)

    def _embed_chunks(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Return (tokens, hidden): embedded tokens, with image features instead of image tokens."""
        states = self._spec.embed(
            self._upload([token for chunk in chunks for token in chunk.token_ids])
        )
        start = 0
        for chunk in chunks:
            for offset, features in chunk.features:
                first = start + offset
                states[first : first + len(features)] = features
            start += len(chunk.token_ids)
        return states

    def _run_layers(self, layers: range, states: Tensor, attention: CacheAttention) -> Tensor:
        for index in layers:
            states = self._spec.layers[index](states, index, attention)
        return states

    def _run_all_layers(self, states: Tensor, attention: CacheAttention) -> Tensor:
        return self._run_layers(range(len(self._spec.layers)), states, attention)

    def _output(self, states: Tensor) -> ModelOutput:
        """Apply the final norm and the head to (rows, hidden)."""
        return ModelOutput(self._spec.head(self._spec.norm(states)).float(), states)

    def _decode_step(
        self,
        batches: Sequence[DecodeBatch],
        token_ids: Tensor,
        positions: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Return the last layer's states (rows, hidden). A CUDA graph can replay it."""
        states = self._spec.embed(token_ids)
        cos_sin = self._attention.rope.cos_sin(positions[None])
        attention = self._attention.decode(batches, lengths, cos_sin)
        return self._run_all_layers(states, attention)

    def _replay_decode(
        self,
        token_ids: Tensor,
        positions: Sequence[int],
        lengths: Sequence[int],
        groups: Sequence[KVRows],
    ) -> Tensor:
        """Run a decode step as a CUDA graph. Unowned rows pad each group: few batch sizes need few
        graphs."""
        assert self._graphs.decode is not None
        batches = [
            self._attention.decode_batch(rows, _GRAPH_SECTIONS, _padded_rows(rows))
            for rows in groups
        ]
        padded_rows = sum(batch.rows for batch in batches)
        indices = self._upload(_row_indices(groups, batches))
        inputs = torch.zeros(3, padded_rows, dtype=torch.int64, device=token_ids.device)
        inputs[0, indices] = token_ids
        inputs[1:, indices] = upload(np.array([positions, lengths]), token_ids.device)
        step = partial(self._decode_step, batches)
        states = self._graphs.decode.run(_graph_key(batches), step, list(inputs))
        return states[indices]

    def _can_replay_prefill(self, chunks: Sequence[PrefillChunk], rows: Sequence[KVRows]) -> bool:
        return (
            self._graphs.prefill is not None
            and self._attention.has_flash
            and can_be_packed(chunks)
            and share_an_arena(rows)
        )

    def _replay_prefill(
        self,
        chunks: Sequence[PrefillChunk],
        rows: Sequence[KVRows],
        states: Tensor,
        cos_sin: CosSin,
    ) -> Tensor:
        """Run all layers as a CUDA graph. Returns the last states (padded tokens, hidden)."""
        assert self._graphs.prefill is not None
        layers = rows[0].arena_layers
        device = self.kv_shape.device
        sizes = PaddedSizes.of(chunks)
        packed = PackedChunks.of_cached_rows(chunks, rows, sizes, device)
        addresses = CacheAddresses.of(chunks, rows, sizes.tokens, device)

        def step(
            states: Tensor,
            cos: Tensor,
            sin: Tensor,
            row_indices: Tensor,
            positions: Tensor,
            *packed_tensors: Tensor,
        ) -> Tensor:
            attention = self._attention.cached_prefill(
                layers,
                packed.with_tensors(packed_tensors),
                CacheAddresses(row_indices, positions),
                (cos, sin),
            )
            return self._run_all_layers(states, attention)

        padded = [pad_tokens(tensor, sizes.tokens) for tensor in (states, *cos_sin)]
        inputs = [*padded, addresses.rows, addresses.positions, *packed.tensors]
        return self._graphs.prefill.run((sizes, arena_key(rows)), step, inputs)

    def _cos_sin(self, positions: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> CosSin:
        return self._attention.rope.cos_sin(upload(positions, self.kv_shape.device))

    def _upload(self, numbers: Sequence[int]) -> Tensor:
        return upload(numbers, self.kv_shape.device)


def _padded_rows(rows: KVRows) -> int:
    """Return the next power of two, if every layer has so many rows."""
    # Layers differ if memory ran out while the cache was being resized.
    available = min(layer.shape[1] for layer in rows.layers)
    return min(1 << (len(rows.lengths) - 1).bit_length(), available)


def _row_indices(groups: Sequence[KVRows], batches: Sequence[DecodeBatch]) -> list[int]:
    """Return the index of each group's rows among all padded rows."""
    starts = [0, *accumulate(batch.rows for batch in batches)]
    return [
        start + row
        for start, rows in zip(starts, groups, strict=False)
        for row in range(len(rows.lengths))
    ]


def _graph_key(batches: Sequence[DecodeBatch]) -> Hashable:
    """Return a key for the memory and shapes that a captured decode step reads and writes."""
    shapes = [
        (batch.rows, batch.padded_kv_len, batch.layers[0].shape, batch.layers[0].stride())
        for batch in batches
    ]
    return (*shapes, *(layer.data_ptr() for batch in batches for layer in batch.layers))
