"""The region head: coordinates and sizes to and from states of the text model.

Follows ``region.py`` upstream. Coordinates and sizes are predicted as bins. A coordinate is its bin
divided by the number of bins. A width or height is a power of two: 2^(10 · bin / last bin − 10). On
the way in, values pass through Fourier features (Tancik et al. 2020).
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
"""The smallest width or height is 2^−10 of the picture's."""


class RegionHead:
    """Encoders and decoders of coordinates and sizes."""

    def __init__(self, config: RegionConfig, weights: Weights) -> None:
        self._config = config
        dim = config.dim
        inner = config.inner_dim
        self._coordinate_frequencies = weights.tensor(
            "region.coord_features", 1, config.coord_feat_dim // 2
        )
        self._size_frequencies = weights.tensor(
            "region.size_features", 2, config.size_feat_dim // 2
        )
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

    def encode_coordinates(self, coordinates: Tensor) -> Tensor:
        """Encode coordinates (count,) as input states (count, hidden)."""
        frequencies = self._coordinate_frequencies
        column = coordinates[:, None].to(frequencies.dtype)
        return self._coordinate_encoder(_fourier_features(column, frequencies))

    def encode_sizes(self, sizes: Tensor) -> Tensor:
        """Encode widths and heights (count, 2) as input states (count, hidden)."""
        return self._size_encoder(_fourier_features(sizes, self._size_frequencies))

    def encode_spatial_refs(self, spatial_refs: Sequence[Location | Region]) -> Tensor:
        """Encode points and boxes as input states (states, hidden).

        A point gives two states: x and y. A box gives three: x and y of its center, and its size.
        """
        device = self._coordinate_frequencies.device
        states = []
        for ref in spatial_refs:
            if isinstance(ref, Location):
                states.append(self.encode_coordinates(_upload([ref.x, ref.y], device)))
            else:
                center = [(ref.x_min + ref.x_max) / 2, (ref.y_min + ref.y_max) / 2]
                size = [[ref.x_max - ref.x_min, ref.y_max - ref.y_min]]
                states.append(self.encode_coordinates(_upload(center, device)))
                states.append(self.encode_sizes(_upload(size, device)))
        return torch.cat(states)

    def decode_coordinates(self, states: Tensor) -> Tensor:
        """Return the most likely bins (rows,) for output states (rows, hidden)."""
        return _logits(self._coordinate_decoder, states).argmax(-1)

    def decode_sizes(self, states: Tensor) -> Tensor:
        """Return the most likely bins of width and height (rows, 2) for states (rows, hidden)."""
        return _logits(self._size_decoder, states).unflatten(-1, (2, -1)).argmax(-1)

    def bins_to_coordinates(self, bins: Tensor) -> Tensor:
        """Convert bins to coordinates, normalized to the picture."""
        return bins / self._config.coord_out_dim

    def bins_to_sizes(self, bins: Tensor) -> Tensor:
        """Convert bins to widths and heights, normalized to the picture."""
        if self._config.linear_sizes:
            return bins / self._config.size_bins
        return torch.exp2(bins / (self._config.size_bins - 1) * OCTAVES - OCTAVES)


def _decoder(
    name: str, dim: int, inner: int, outputs: int, weights: Weights
) -> tuple[Linear, Linear]:
    return (
        weights.linear(f"{name}.fc1", dim, inner, "gelu"),
        weights.linear(f"{name}.fc2", inner, outputs),
    )


def _logits(decoder: tuple[Linear, Linear], states: Tensor) -> Tensor:
    expand, contract = decoder
    return contract(expand(states))


def _upload(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> Tensor:
    return upload(np.array(values, np.float32), device)


def _fourier_features(values: Tensor, frequencies: Tensor) -> Tensor:
    """(count, values) -> (count, features), for frequencies (values, features / 2)."""
    angles = 2 * math.pi * values.to(frequencies.dtype) @ frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
