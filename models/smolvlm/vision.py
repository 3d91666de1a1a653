"""The vision encoder and the connector behind it (``modeling_smolvlm.py`` in transformers)."""

from __future__ import annotations

from collections.abc import Generator
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from models.graphs import GraphCache
from models.linear import WeightPacker
from models.siglip import SiglipEncoder, SiglipLayer


class VisionEncoder:
    """A SigLIP encoder and a connector, which makes one image token of a square of patches."""

    def __init__(self, model: Any, packer: WeightPacker, graphs: GraphCache | None = None) -> None:
        vision = model.vision_model
        config = vision.config
        patch_embedding = vision.embeddings.patch_embedding
        self._shuffle = int(model.connector.scale_factor)
        """Side of the square in patches."""
        self._encoder = SiglipEncoder(
            patch=int(config.patch_size),
            heads=int(config.num_attention_heads),
            embed=packer.pack_weight(patch_embedding.weight.flatten(1), patch_embedding.bias),
            position_embeddings=packer.to_device(vision.embeddings.position_embedding.weight),
            layers=[_layer(layer, packer) for layer in vision.encoder.layers],
            norm=vision.post_layernorm.to(packer.device),
            graphs=graphs,
        )
        self._project = packer.pack_layers(model.connector.modality_projection.proj)

    def encode_in_slices(self, tiles: Tensor, slice_size: int) -> Generator[None, None, Tensor]:
        """Encode tiles (tiles, channels, side, side) to image tokens (tiles, tokens, hidden).

        Yields between slices of ``slice_size`` patches × layers.
        """
        states = yield from self._encoder.encode_in_slices(tiles, slice_size)
        with torch.inference_mode():
            return self._project(self._shuffle_pixels(states))

    def _shuffle_pixels(self, states: Tensor) -> Tensor:
        """Pixel shuffle: (tiles, patches, hidden) -> (tiles, tokens, shuffle² · hidden)."""
        tiles = len(states)
        side = isqrt(states.shape[1]) // self._shuffle  # in tokens
        grid = states.view(tiles, side, self._shuffle, side, self._shuffle, -1).transpose(2, 3)
        return grid.reshape(tiles, side * side, -1)


def _layer(layer: Any, packer: WeightPacker) -> SiglipLayer:
    attention = layer.self_attn
    mlp = layer.mlp
    return SiglipLayer(
        norm1=layer.layer_norm1.to(packer.device),
        qkv=packer.pack_layers(attention.q_proj, attention.k_proj, attention.v_proj),
        out=packer.pack_layers(attention.out_proj),
        norm2=layer.layer_norm2.to(packer.device),
        expand=packer.pack_layers(mlp.fc1, activation="gelu"),
        contract=packer.pack_layers(mlp.fc2),
    )
