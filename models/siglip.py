"""A vision transformer of SigLIP's kind (Zhai et al. 2023), over any family's weights: linear
patches, learned places, and layers of norm, attention, norm and a GELU MLP."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.graphs import Graphs
from models.linear import Linear
from models.operations import attention, by_rows

Norm = Callable[[Tensor], Tensor]
_MOST_TILES = 16
"""Of a graph: enough to keep a data center's GPU busy."""


def _backends(is_cuda: bool) -> AbstractContextManager[None]:
    """Heads of 72 numbers take torch's flash attention half as long again as cuDNN's
    (docs/performance.md)."""
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
    """GELU (its tanh approximation) included."""
    contract: Linear

    def mlp(self, states: Tensor, residual: Tensor) -> Tensor:
        """What the MLP makes of the states, added to ``residual``."""
        return self.contract(self.expand(self.norm2(states)), residual)


@dataclass(frozen=True)
class SiglipEncoder:
    patch: int
    """Side of a patch in pixels."""
    heads: int
    embed: Linear
    """A patch's values, channel by channel, to its state."""
    places: Tensor
    """What is added to the state of each patch of a tile (patches, hidden)."""
    layers: Sequence[SiglipLayer]
    norm: Norm
    graphs: Graphs | None = None

    def slices(self, tiles: Tensor, work: int) -> Generator[None, None, Tensor]:
        """States (tiles, patches, hidden) of tiles (tiles, channels, side, side), ``work`` patches
        times layers at a time."""
        if self.graphs is not None:
            return (yield from self._replayed(self.graphs, tiles))
        with torch.inference_mode():
            states = self._embedded(tiles)
        layers = max(1, work // len(states))
        for first in range(0, len(self.layers), layers):
            if first:
                yield
            with torch.inference_mode():
                states = self._through(self.layers[first : first + layers], states, len(tiles))
        with torch.inference_mode():
            return self._ended(states, len(tiles))

    def _replayed(self, graphs: Graphs, tiles: Tensor) -> Generator[None, None, Tensor]:
        """The same by graphs, in equal parts: few sizes, so that graphs serve again."""
        parts: list[Tensor] = []
        for part in tiles.chunk(-(-len(tiles) // _MOST_TILES)):
            if parts:
                yield
            with torch.inference_mode():
                parts.append(graphs.run((SiglipEncoder, len(part)), self._whole, [part]))
        with torch.inference_mode():
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _whole(self, tiles: Tensor) -> Tensor:
        return self._ended(
            self._through(self.layers, self._embedded(tiles), len(tiles)), len(tiles)
        )

    def _embedded(self, tiles: Tensor) -> Tensor:
        """(tiles · patches, hidden)."""
        patches = F.unfold(tiles, self.patch, stride=self.patch).transpose(1, 2)
        return (self.embed(patches) + self.places).flatten(0, 1)

    def _through(self, layers: Sequence[SiglipLayer], states: Tensor, tiles: int) -> Tensor:
        for layer in layers:
            states = self._apply(layer, states, tiles)
        return states

    def _ended(self, states: Tensor, tiles: int) -> Tensor:
        return self.norm(states).unflatten(0, (tiles, -1))

    def _apply(self, layer: SiglipLayer, states: Tensor, tiles: int) -> Tensor:
        """Runs states (tiles · patches, hidden) through a layer."""
        mixed = (
            layer.qkv(layer.norm1(states))
            .unflatten(-1, (3, self.heads, -1))
            .unflatten(0, (tiles, -1))
        )
        heads_first = mixed.permute(2, 0, 3, 1, 4)
        query, key, value = heads_first if states.is_cuda else heads_first.contiguous()
        with _backends(states.is_cuda):
            attended = attention(query, key, value)
        states = by_rows(layer.out, attended.transpose(1, 2).flatten(0, 1).flatten(1), states)
        return by_rows(layer.mlp, states, states)
