"""Places in a picture as the text model reads and says them (``region.py`` upstream).

Both are bins. A coordinate is its bin over their number; a width or height is a power of two, 2^(10
· bin / last − 10). What is read goes through Fourier features (Tancik et al. 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.linear import Linear
from models.moondream.config import RegionConfig
from models.moondream.weights import Weights
from raylens.core.types import Location, Region
from raylens.engine.transfer import upload

OCTAVES = 10.0


class RegionHead:
    """The weights of both directions."""

    def __init__(self, config: RegionConfig, weights: Weights) -> None:
        self._config = config
        dim, inner = config.dim, config.inner_dim
        self._coordinate_waves = weights.tensor(
            "region.coord_features", 1, config.coord_feat_dim // 2
        )
        self._size_waves = weights.tensor("region.size_features", 2, config.size_feat_dim // 2)
        self._coordinate_encoder = weights.linear(
            "region.coord_encoder", config.coord_feat_dim, dim
        )
        self._size_encoder = weights.linear("region.size_encoder", config.size_feat_dim, dim)
        self._coordinate_decoder = _decoder(
            "region.coord_decoder", dim, inner, config.coord_out_dim, weights
        )
        self._size_decoder = _decoder(
            "region.size_decoder", dim, inner, config.size_out_dim, weights
        )

    def coordinate_states(self, values: Tensor) -> Tensor:
        """Coordinates (count,) as the text model reads them (count, hidden)."""
        return self._coordinate_encoder(
            _waves(values[:, None].to(self._coordinate_waves.dtype), self._coordinate_waves)
        )

    def size_states(self, sizes: Tensor) -> Tensor:
        """Widths and heights (count, 2) as the text model reads them (count, hidden)."""
        return self._size_encoder(_waves(sizes, self._size_waves))

    def place_states(self, places: Sequence[Location | Region]) -> Tensor:
        """Each place as the text model reads it: its middle's coordinates, and a region's size
        (states, hidden)."""
        waves = self._coordinate_waves
        states = []
        for place in places:
            if isinstance(place, Location):
                states.append(self.coordinate_states(_values([place.x, place.y], waves)))
            else:
                middle = [(place.x_min + place.x_max) / 2, (place.y_min + place.y_max) / 2]
                size = [[place.x_max - place.x_min, place.y_max - place.y_min]]
                states.append(self.coordinate_states(_values(middle, waves)))
                states.append(self.size_states(_values(size, waves)))
        return torch.cat(states)

    def coordinates(self, states: Tensor) -> Tensor:
        """The bins (rows,) that states (rows, hidden) of the text model say."""
        return self._said(self._coordinate_decoder, states).argmax(-1)

    def sizes(self, states: Tensor) -> Tensor:
        """The bins of width and height (rows, 2) that states (rows, hidden) of the text model say."""
        return self._said(self._size_decoder, states).unflatten(-1, (2, -1)).argmax(-1)

    def coordinates_of(self, bins: Tensor) -> Tensor:
        return bins / self._config.coord_out_dim

    def sizes_of(self, bins: Tensor) -> Tensor:
        return torch.exp2(bins / (self._config.size_bins - 1) * OCTAVES - OCTAVES)

    def _said(self, layers: tuple[Linear, Linear], states: Tensor) -> Tensor:
        expand, contract = layers
        return contract(expand(states))


def _decoder(
    name: str, dim: int, inner: int, outputs: int, weights: Weights
) -> tuple[Linear, Linear]:
    return (
        weights.linear(f"{name}.fc1", dim, inner, "gelu"),
        weights.linear(f"{name}.fc2", inner, outputs),
    )


def _values(values: Sequence[float] | Sequence[Sequence[float]], like: Tensor) -> Tensor:
    return upload(np.array(values, np.float32), like.device)


def _waves(values: Tensor, waves: Tensor) -> Tensor:
    turns = 2 * math.pi * values.to(waves.dtype) @ waves
    return torch.cat([turns.cos(), turns.sin()], -1)
