"""A decoder-only text model: tokens and image features in, logits out.

A family describes its weights in a :class:`DecoderSpec`. The decoder embeds tokens, runs the
layers, and applies the final norm and the head. :class:`AttentionBackend` implements attention and
accesses the KV cache.
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
from models.cpu.decode import LayerParts, NativeDecodeStep
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
from models.rope import CosSin, RopeParameters
from raylens.engine.model import KVRows, KVSpec, ModelOutput, PrefillChunk
from raylens.engine.transfer import upload

DecoderLayer = Callable[[Tensor, int, CacheAttention], Tensor]
"""Takes hidden states (tokens, hidden), a layer index and the step's attention; returns new hidden
states."""

_GRAPH_KV_LEN_BUCKETS = 8
"""Without flash attention, a decode graph has a fixed KV length. Each arena's KV length is rounded
up to one of at most this many lengths, which limits the number of graphs."""


@dataclass(frozen=True)
class DecoderSpec:
    """A family's weights, and the shapes of its attention."""

    embed: Callable[[Tensor], Tensor]
    """Maps token ids (tokens,) to hidden states (tokens, hidden)."""
    layers: Sequence[DecoderLayer]
    norm: Callable[[Tensor], Tensor]
    head: Linear
    rope: RopeParameters
    num_query_heads: int
    kv_spec: KVSpec
    layer_parts: Sequence[LayerParts] | None = None
    """The parts of all layers, if they have the form of :class:`LayerParts`: decode steps on a CPU
    can then be native ones."""


class Decoder:
    """Runs prefill and decode steps. Not thread-safe."""

    def __init__(self, spec: DecoderSpec, graphs: ModelGraphs | None = None) -> None:
        self.kv_spec = spec.kv_spec
        self._spec = spec
        self._graphs = graphs or ModelGraphs()
        self._attention = AttentionBackend(spec.kv_spec, spec.num_query_heads, spec.rope)
        self._native_step = NativeDecodeStep.create(
            spec.layer_parts, spec.norm, spec.head, spec.num_query_heads, spec.kv_spec
        )

    def prefill(
        self,
        chunks: Sequence[PrefillChunk],
        get_rows: Callable[[], Sequence[KVRows]],
        max_slice_tokens: int,
    ) -> Generator[None, None, ModelOutput]:
        """See :meth:`raylens.engine.model.Model.prefill`.

        Work is sliced between layers, not between tokens, because a bidirectional prefix must be
        processed as a whole.
        """
        with torch.inference_mode():
            hidden_states = self._embed_chunks(chunks)
            cos_sin = self._cos_sin(np.concatenate([chunk.positions for chunk in chunks], 1))
            ends = accumulate(len(chunk.token_ids) for chunk in chunks)
            last_token_indices = self._upload([end - 1 for end in ends])
            fits_in_slice = len(hidden_states) <= max_slice_tokens
            if fits_in_slice and self._can_use_prefill_graph(chunks, get_rows()):
                hidden_states = self._run_prefill_graph(chunks, get_rows(), hidden_states, cos_sin)
                return self._output(hidden_states[last_token_indices])
            attention = self._attention.prefill(chunks, cos_sin)
        num_layers = len(self._spec.layers)
        layers_per_slice = max(1, max_slice_tokens * num_layers // len(hidden_states))
        for first in range(0, num_layers, layers_per_slice):
            if first:
                yield
            with torch.inference_mode():
                attention.kv_rows = get_rows()
                layer_range = range(first, min(first + layers_per_slice, num_layers))
                hidden_states = self._run_layers(layer_range, hidden_states, attention)
        with torch.inference_mode():
            return self._output(hidden_states[last_token_indices])

    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        """See :meth:`raylens.engine.model.Model.decode`."""
        lengths = [length for kv_rows in rows_by_arena for length in kv_rows.lengths]
        if self._graphs.decode is not None:
            return self._output(
                self._run_decode_graph(token_ids, positions, lengths, rows_by_arena)
            )
        if self._native_step is not None:
            cos, sin = self._attention.rope.pair_cos_sin(self._upload(positions)[None])
            states = self._spec.embed(token_ids)
            logits, states = self._native_step.run(states, cos, sin, rows_by_arena)
            return ModelOutput(logits, states.to(self.kv_spec.dtype))
        batches = [self._attention.decode_batch(kv_rows) for kv_rows in rows_by_arena]
        hidden_states = self._decode_step(
            batches, token_ids, self._upload(positions), self._upload(lengths)
        )
        return self._output(hidden_states)

    def _embed_chunks(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Return (tokens, hidden): embedded tokens, with image tokens replaced with image
        features."""
        hidden_states = self._spec.embed(
            self._upload([token for chunk in chunks for token in chunk.token_ids])
        )
        start = 0
        for chunk in chunks:
            for offset, features in chunk.features:
                first = start + offset
                hidden_states[first : first + len(features)] = features
            start += len(chunk.token_ids)
        return hidden_states

    def _run_layers(
        self, layer_range: range, hidden_states: Tensor, attention: CacheAttention
    ) -> Tensor:
        for index in layer_range:
            hidden_states = self._spec.layers[index](hidden_states, index, attention)
        return hidden_states

    def _run_all_layers(self, hidden_states: Tensor, attention: CacheAttention) -> Tensor:
        return self._run_layers(range(len(self._spec.layers)), hidden_states, attention)

    def _output(self, hidden_states: Tensor) -> ModelOutput:
        """Apply the final norm and the head to (rows, hidden)."""
        logits = self._spec.head(self._spec.norm(hidden_states)).float()
        return ModelOutput(logits, hidden_states)

    def _decode_step(
        self,
        batches: Sequence[DecodeBatch],
        token_ids: Tensor,
        positions: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Return the last layer's hidden states (rows, hidden). Can be captured in a CUDA graph."""
        hidden_states = self._spec.embed(token_ids)
        cos_sin = self._attention.rope.cos_sin(positions[None])
        attention = self._attention.decode(batches, lengths, cos_sin)
        return self._run_all_layers(hidden_states, attention)

    def _run_decode_graph(
        self,
        token_ids: Tensor,
        positions: Sequence[int],
        lengths: Sequence[int],
        rows_by_arena: Sequence[KVRows],
    ) -> Tensor:
        """Run a decode step as a CUDA graph.

        The rows of each arena are padded with unused rows to a power of two, which limits the
        number of graphs.
        """
        assert self._graphs.decode is not None
        batches = [
            self._attention.decode_batch(
                kv_rows, _GRAPH_KV_LEN_BUCKETS, _padded_batch_size(kv_rows)
            )
            for kv_rows in rows_by_arena
        ]
        num_rows = sum(batch.num_rows for batch in batches)
        row_indices = self._upload(_row_indices(rows_by_arena, batches))
        # inputs[0]: token ids; inputs[1]: positions; inputs[2]: lengths. Padding columns are zero.
        inputs = torch.zeros(3, num_rows, dtype=torch.int64, device=token_ids.device)
        inputs[0, row_indices] = token_ids
        inputs[1:, row_indices] = upload(np.array([positions, lengths]), token_ids.device)
        step = partial(self._decode_step, batches)
        hidden_states = self._graphs.decode.run(_graph_key(batches), step, list(inputs))
        return hidden_states[row_indices]

    def _can_use_prefill_graph(
        self, chunks: Sequence[PrefillChunk], kv_rows: Sequence[KVRows]
    ) -> bool:
        return (
            self._graphs.prefill is not None
            and self._attention.has_flash
            and can_be_packed(chunks)
            and share_an_arena(kv_rows)
        )

    def _run_prefill_graph(
        self,
        chunks: Sequence[PrefillChunk],
        kv_rows: Sequence[KVRows],
        hidden_states: Tensor,
        cos_sin: CosSin,
    ) -> Tensor:
        """Run all layers as a CUDA graph. Return the last layer's hidden states (padded tokens,
        hidden)."""
        assert self._graphs.prefill is not None
        arena_kv = kv_rows[0].arena_kv
        device = self.kv_spec.device
        sizes = PaddedSizes.of(chunks)
        packed = PackedChunks.of_cached_rows(chunks, kv_rows, sizes, device)
        addresses = CacheAddresses.of(chunks, kv_rows, sizes.num_tokens, device)

        def run_layers(
            graph_states: Tensor,
            graph_cos: Tensor,
            graph_sin: Tensor,
            cache_rows: Tensor,
            kv_positions: Tensor,
            *packed_tensors: Tensor,
        ) -> Tensor:
            attention = self._attention.cached_prefill(
                arena_kv,
                packed.with_tensors(packed_tensors),
                CacheAddresses(cache_rows, kv_positions),
                (graph_cos, graph_sin),
            )
            return self._run_all_layers(graph_states, attention)

        padded = [pad_tokens(tensor, sizes.num_tokens) for tensor in (hidden_states, *cos_sin)]
        inputs = [*padded, addresses.cache_rows, addresses.positions, *packed.tensors]
        return self._graphs.prefill.run((sizes, arena_key(kv_rows)), run_layers, inputs)

    def _cos_sin(self, positions: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> CosSin:
        """Return the cosines and sines of positions (axes, tokens)."""
        return self._attention.rope.cos_sin(upload(positions, self.kv_spec.device))

    def _upload(self, numbers: Sequence[int]) -> Tensor:
        return upload(numbers, self.kv_spec.device)


def _padded_batch_size(kv_rows: KVRows) -> int:
    """Return the number of rows in use, rounded up to a power of two but not above the rows
    allocated in every layer."""
    # A resize of the cache that ran out of memory can leave some layers with more rows.
    allocated_rows = min(layer.shape[1] for layer in kv_rows.layer_kv)
    return min(1 << (len(kv_rows.lengths) - 1).bit_length(), allocated_rows)


def _row_indices(rows_by_arena: Sequence[KVRows], batches: Sequence[DecodeBatch]) -> list[int]:
    """Return the index of each row in use among all padded rows."""
    starts = [0, *accumulate(batch.num_rows for batch in batches)]
    return [
        start + row
        for start, kv_rows in zip(starts, rows_by_arena, strict=False)
        for row in range(len(kv_rows.lengths))
    ]


def _graph_key(batches: Sequence[DecodeBatch]) -> Hashable:
    """Return a key for the memory and shapes that a captured decode step reads and writes."""
    shapes = [
        (batch.num_rows, batch.padded_kv_len, batch.layer_kv[0].shape, batch.layer_kv[0].stride())
        for batch in batches
    ]
    return (*shapes, *(layer.data_ptr() for batch in batches for layer in batch.layer_kv))
