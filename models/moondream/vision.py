"""The vision encoder: crops to image tokens (``vision.py`` upstream)."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.graphs import Graphs
from models.moondream.config import VisionConfig
from models.moondream.crops import Crops, stitch
from models.moondream.weights import Weights
from models.operations import normalized
from models.siglip import SiglipEncoder, SiglipLayer
from raylens.engine.transfer import upload


class VisionEncoder:
    """Encodes each crop, stitches the local ones, pools them to the whole one's grid, and projects
    both together."""

    def __init__(
        self,
        config: VisionConfig,
        weights: Weights,
        crops_per_step: int,
        graphs: Graphs | None = None,
    ) -> None:
        self._config = config
        self._crops_per_step = crops_per_step
        dim, patch = config.enc_dim, config.enc_patch_size
        places = weights.tensor("vision.pos_emb", 1, config.grid**2, dim)
        self._encoder = SiglipEncoder(
            patch=patch,
            heads=config.enc_n_heads,
            embed=weights.linear("vision.patch_emb", config.in_channels * patch**2, dim),
            places=places[0],
            layers=[
                _layer(f"vision.blocks.{index}", config, weights)
                for index in range(config.enc_n_layers)
            ],
            norm=weights.norm("vision.post_ln", dim),
            graphs=graphs,
        )
        self._expand = weights.linear("vision.proj_mlp.fc1", 2 * dim, config.proj_inner_dim, "gelu")
        self._contract = weights.linear(
            "vision.proj_mlp.fc2", config.proj_inner_dim, config.proj_out_dim
        )

    def slices(self, pictures: Sequence[Crops], work: int) -> Generator[None, None, list[Tensor]]:
        """Image tokens (tokens, hidden) of each picture, ``work`` patches times layers at a time.
        Crops of several pictures are encoded together."""
        crops = np.concatenate([picture.pixels for picture in pictures])
        parts = []
        for start in range(0, len(crops), self._crops_per_step):
            if start:
                yield
            pixels = self._pixels(crops[start : start + self._crops_per_step])
            parts.append((yield from self._encoder.slices(pixels, work)))
        with torch.inference_mode():
            states = torch.cat(parts).split([len(picture.pixels) for picture in pictures])
            return [
                self._projected(*picture)
                for picture in zip(states, [p.tiling for p in pictures], strict=True)
            ]

    def _pixels(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Of 0 to 255, as the encoder reads them: (crops, channels, side, side) of −1 to 1."""
        places = self._encoder.places
        channels_first = upload(pixels, places.device).permute(0, 3, 1, 2)
        return normalized(channels_first, 1 / 255, (0.5,) * 3, (0.5,) * 3).to(places.dtype)

    def _projected(self, states: Tensor, tiling: tuple[int, int]) -> Tensor:
        whole, grid = states[0], self._config.grid
        local = whole
        if tiling != (1, 1):
            stitched = stitch(
                states[1:].unflatten(1, (grid, grid)), tiling, self._config.overlap_margin
            )
            pooled = F.adaptive_avg_pool2d(stitched.permute(2, 0, 1), (grid, grid))
            local = pooled.permute(1, 2, 0).flatten(0, 1)
        return self._contract(self._expand(torch.cat([whole, local], -1)))


def _layer(name: str, config: VisionConfig, weights: Weights) -> SiglipLayer:
    dim, inner = config.enc_dim, config.enc_ff_dim
    return SiglipLayer(
        norm1=weights.norm(f"{name}.ln1", dim),
        qkv=weights.linear(f"{name}.attn.qkv", dim, 3 * dim),
        out=weights.linear(f"{name}.attn.proj", dim, dim),
        norm2=weights.norm(f"{name}.ln2", dim),
        expand=weights.linear(f"{name}.mlp.fc1", dim, inner, "gelu"),
        contract=weights.linear(f"{name}.mlp.fc2", inner, dim),
    )
