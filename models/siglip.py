"""A vision transformer after SigLIP (Zhai et al. 2023), over any family's weights.

Patches are embedded linearly and get learned position embeddings. A layer is: norm, attention, norm
and a GELU MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.cpu.attention import AttentionInput, attend, attention_library
from models.graphs import GraphCache
from models.linear import Linear
from models.operations import apply_in_row_blocks, attention

Norm = Callable[[Tensor], Tensor]
_GRAPH_TILES = 16
"""Tiles of a graph at most: enough to keep a data center GPU busy."""


def _attention_backends(is_cuda: bool) -> AbstractContextManager[None]:
    """Prefer cuDNN on CUDA: with heads of 72 values, torch's flash attention takes 1.5 times as
    long (docs/performance.md)."""
    if not is_cuda:
        return nullcontext()
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)


@dataclass(frozen=True)
class SiglipLayer:
    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    expand: Linear
    """The MLP's first product with its GELU (tanh approximation)."""
    contract: Linear

    def mlp(self, states: Tensor, residual: Tensor) -> Tensor:
        """Return the MLP's output plus ``residual``."""
        return self.contract(self.expand(self.norm2(states)), residual)


@dataclass(frozen=True)
class SiglipEncoder:
    patch: int
    """Side of a patch in pixels."""
    heads: int
    embed: Linear
    """Maps a patch's values, channel by channel, to its state."""
    position_embeddings: Tensor
    """Position embeddings of a tile's patches (patches, hidden)."""
    layers: Sequence[SiglipLayer]
    norm: Norm
    graphs: GraphCache | None = None

    def encode_in_slices(self, tiles: Tensor, slice_size: int) -> Generator[None, None, Tensor]:
        """Encode tiles (tiles, channels, side, side) to states (tiles, patches, hidden).

        Yields between slices of ``slice_size`` patches × layers.
        """
        if self.graphs is not None:
            return (yield from self._run_graphs(self.graphs, tiles))
        with torch.inference_mode():
            states = self._embed_patches(tiles)
        layers = max(1, slice_size // len(states))
        for first in range(0, len(self.layers), layers):
            if first:
                yield
            with torch.inference_mode():
                states = self._run_layers(self.layers[first : first + layers], states, len(tiles))
        with torch.inference_mode():
            return self._finalize(states, len(tiles))

    def _run_graphs(self, graphs: GraphCache, tiles: Tensor) -> Generator[None, None, Tensor]:
        """Encode tiles by CUDA graphs, in equal batches: few batch sizes, so few graphs."""
        batches: list[Tensor] = []
        for batch in tiles.chunk(-(-len(tiles) // _GRAPH_TILES)):
            if batches:
                yield
            with torch.inference_mode():
                batches.append(graphs.run((SiglipEncoder, len(batch)), self._encode, [batch]))
        with torch.inference_mode():
            return batches[0] if len(batches) == 1 else torch.cat(batches)

    def _encode(self, tiles: Tensor) -> Tensor:
        states = self._embed_patches(tiles)
        states = self._run_layers(self.layers, states, len(tiles))
        return self._finalize(states, len(tiles))

    def _embed_patches(self, tiles: Tensor) -> Tensor:
        """(tiles, channels, side, side) -> (tiles · patches, hidden)."""
        patches = F.unfold(tiles, self.patch, stride=self.patch).transpose(1, 2)
        return (self.embed(patches) + self.position_embeddings).flatten(0, 1)

    def _run_layers(self, layers: Sequence[SiglipLayer], states: Tensor, tiles: int) -> Tensor:
        for layer in layers:
            states = self._run_layer(layer, states, tiles)
        return states

    def _run_layer(self, layer: SiglipLayer, states: Tensor, tiles: int) -> Tensor:
        """(tiles · patches, hidden) -> the same shape."""
        qkv = layer.qkv(layer.norm1(states)).unflatten(-1, (3, self.heads, -1))
        states = apply_in_row_blocks(layer.out, self._attend(qkv, tiles), states)
        return apply_in_row_blocks(layer.mlp, states, states)

    def _attend(self, qkv: Tensor, tiles: int) -> Tensor:
        """(tiles · patches, 3, heads, head_dim) -> (tiles · patches, hidden)."""
        library = attention_library(qkv.device, qkv.dtype, qkv.shape[-1])
        if library is not None:
            inputs = [AttentionInput(*tile.unbind(1)) for tile in qkv.chunk(tiles)]
            return attend(library, inputs).flatten(1)
        # (tiles, patches, 3, heads, head_dim) -> (3, tiles, heads, patches, head_dim)
        heads_first = qkv.unflatten(0, (tiles, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads_first if qkv.is_cuda else heads_first.contiguous()
        with _attention_backends(qkv.is_cuda):
            attended = attention(query, key, value)
        return attended.transpose(1, 2).flatten(0, 1).flatten(1)

    def _finalize(self, states: Tensor, tiles: int) -> Tensor:
        """(tiles · patches, hidden) -> (tiles, patches, hidden), normalized."""
        return self.norm(states).unflatten(0, (tiles, -1))
