"""The vision encoder: crops to image tokens (``vision.py`` upstream)."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.graphs import GraphCache
from models.moondream.config import VisionConfig
from models.moondream.crops import Crops, stitch
from models.moondream.weights import Weights
from models.operations import normalize_pixels
from models.siglip import SiglipEncoder, SiglipLayer
from raylens.engine.transfer import upload


class VisionEncoder:
    """Encodes the crops of pictures and projects them to image tokens.

    The local crops of a picture are stitched and pooled to the grid of the whole picture. The
    projector reads both side by side.
    """

    def __init__(
        self,
        config: VisionConfig,
        weights: Weights,
        crops_per_step: int,
        graphs: GraphCache | None = None,
    ) -> None:
        self._config = config
        self._crops_per_step = crops_per_step
        dim = config.enc_dim
        patch = config.enc_patch_size
        position_embedding = weights.tensor("vision.pos_emb", 1, config.grid**2, dim)
        self._encoder = SiglipEncoder(
            patch=patch,
            heads=config.enc_n_heads,
            embed=weights.linear("vision.patch_emb", config.in_channels * patch**2, dim),
            position_embeddings=position_embedding[0],
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

    def encode_in_slices(
        self, pictures: Sequence[Crops], slice_size: int
    ) -> Generator[None, None, list[Tensor]]:
        """Encode pictures; return the image tokens (tokens, hidden) of each.

        Yields between slices of ``slice_size`` patches × layers. The crops of several pictures are
        encoded together.
        """
        crops = np.concatenate([picture.pixels for picture in pictures])
        batches = []
        for start in range(0, len(crops), self._crops_per_step):
            if start:
                yield
            pixels = self._normalize(crops[start : start + self._crops_per_step])
            batches.append((yield from self._encoder.encode_in_slices(pixels, slice_size)))
        with torch.inference_mode():
            crop_counts = [len(picture.pixels) for picture in pictures]
            states_by_picture = torch.cat(batches).split(crop_counts)
            return [
                self._project(states, picture.tiling)
                for states, picture in zip(states_by_picture, pictures, strict=True)
            ]

    def _normalize(self, crops: NDArray[np.uint8]) -> Tensor:
        """(crops, side, side, channels) of 0 to 255 -> (crops, channels, side, side) of −1 to 1."""
        position_embedding = self._encoder.position_embeddings
        channels_first = upload(crops, position_embedding.device).permute(0, 3, 1, 2)
        pixels = normalize_pixels(channels_first, 1 / 255, (0.5,) * 3, (0.5,) * 3)
        return pixels.to(position_embedding.dtype)

    def _project(self, states: Tensor, tiling: tuple[int, int]) -> Tensor:
        """Project the states (crops, patches, hidden) of a picture to its image tokens."""
        grid = self._config.grid
        whole = states[0]
        local = whole
        if tiling != (1, 1):
            local_crops = states[1:].unflatten(1, (grid, grid))
            stitched = stitch(local_crops, tiling, self._config.overlap_margin)
            pooled = F.adaptive_avg_pool2d(stitched.permute(2, 0, 1), (grid, grid))
            local = pooled.permute(1, 2, 0).flatten(0, 1)
        return self._contract(self._expand(torch.cat([whole, local], -1)))


def _layer(name: str, config: VisionConfig, weights: Weights) -> SiglipLayer:
    dim = config.enc_dim
    inner = config.enc_ff_dim
    return SiglipLayer(
        norm1=weights.norm(f"{name}.ln1", dim),
        qkv=weights.linear(f"{name}.attn.qkv", dim, 3 * dim),
        out=weights.linear(f"{name}.attn.proj", dim, dim),
        norm2=weights.norm(f"{name}.ln2", dim),
        expand=weights.linear(f"{name}.mlp.fc1", dim, inner, "gelu"),
        contract=weights.linear(f"{name}.mlp.fc2", inner, dim),
    )
