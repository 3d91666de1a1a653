"""A vision transformer of SigLIP's kind (Zhai et al. 2023), over any family's weights: linear patches, learned places,
and layers of norm, attention, norm and a GELU MLP."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.linear import Linear
from models.operations import attention, by_rows

Norm = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    expand: Linear
    """GELU (its tanh approximation) included."""
    contract: Linear

    def mlp(self, states: Tensor, plus: Tensor) -> Tensor:
        """What the MLP makes of the states, added to ``plus``."""
        return self.contract(self.expand(self.norm2(states)), plus)


@dataclass(frozen=True)
class Encoder:
    patch: int
    """Side of a patch in pixels."""
    heads: int
    embed: Linear
    """A patch's values, channel by channel, to its state."""
    places: Tensor
    """What is added to the state of each patch of a tile (patches, hidden)."""
    layers: Sequence[Layer]
    norm: Norm

    def slices(self, tiles: Tensor, work: int) -> Generator[None, None, Tensor]:
        """States (tiles, patches, hidden) of tiles (tiles, channels, side, side), ``work`` patches times layers at a
        time."""
        count = len(tiles)
        with torch.inference_mode():
            patches = F.unfold(tiles, self.patch, stride=self.patch).transpose(1, 2)
            states = (self.embed(patches) + self.places).flatten(0, 1)
        layers = max(1, work // len(states))
        for first in range(0, len(self.layers), layers):
            if first:
                yield
            with torch.inference_mode():
                for layer in self.layers[first : first + layers]:
                    self._apply(layer, states, count)
        with torch.inference_mode():
            return self.norm(states).unflatten(0, (count, -1))

    def _apply(self, layer: Layer, states: Tensor, tiles: int) -> None:
        """Runs states (tiles · patches, hidden) through a layer, in place."""
        mixed = layer.qkv(layer.norm1(states)).unflatten(-1, (3, self.heads, -1)).unflatten(0, (tiles, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4).contiguous()
        by_rows(layer.out, attention(query, key, value).transpose(1, 2).flatten(0, 1).flatten(1), states)
        by_rows(layer.mlp, states, states)
