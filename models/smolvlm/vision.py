"""The vision encoder (``modeling_smolvlm.py`` in transformers) and the connector behind it."""

from __future__ import annotations

from collections.abc import Generator
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from models.graphs import Graphs
from models.linear import Packer
from models.siglip import SiglipEncoder, SiglipLayer


class VisionEncoder:
    """The vision tower (``modeling_smolvlm.py`` in transformers) and the connector behind it."""

    def __init__(self, model: Any, packer: Packer, graphs: Graphs | None = None) -> None:
        vision, self._shuffle = model.vision_model, int(model.connector.scale_factor)
        config, patches = vision.config, vision.embeddings.patch_embedding
        self._encoder = SiglipEncoder(
            patch=int(config.patch_size),
            heads=int(config.num_attention_heads),
            embed=packer.weight(patches.weight.flatten(1), patches.bias),
            places=packer.tensor(vision.embeddings.position_embedding.weight),
            layers=[_layer(layer, packer) for layer in vision.encoder.layers],
            norm=vision.post_layernorm.to(packer.device),
            graphs=graphs,
        )
        self._project = packer.linear(model.connector.modality_projection.proj)

    def slices(self, tiles: Tensor, work: int) -> Generator[None, None, Tensor]:
        """Image tokens (tiles, tokens, hidden) of tiles (tiles, channels, side, side), ``work``
        patches times layers at a time."""
        states = yield from self._encoder.slices(tiles, work)
        with torch.inference_mode():
            # Pixel shuffle: a square of neighboring patches becomes one token.
            count, edge = len(tiles), isqrt(states.shape[1]) // self._shuffle
            grid = states.view(count, edge, self._shuffle, edge, self._shuffle, -1).transpose(2, 3)
            return self._project(grid.reshape(count, edge * edge, -1))


def _layer(layer: Any, packer: Packer) -> SiglipLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return SiglipLayer(
        norm1=layer.layer_norm1.to(packer.device),
        qkv=packer.linear(attention.q_proj, attention.k_proj, attention.v_proj),
        out=packer.linear(attention.out_proj),
        norm2=layer.layer_norm2.to(packer.device),
        expand=packer.linear(mlp.fc1, activation="gelu"),
        contract=packer.linear(mlp.fc2),
    )
