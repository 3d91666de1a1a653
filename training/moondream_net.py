"""Moondream in plain PyTorch over named parameters, for training: whole batches, no KV cache.

Names and shapes are the checkpoint's own, as :func:`models.moondream.model.tensor_shapes` lists
them. Ids are positive here: tokens, then coordinate bins, then pairs of size bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.moondream.config import MoondreamConfig
from models.moondream.crops import stitch
from models.moondream.model import tensor_shapes
from models.moondream.text import rotary_frequencies
from models.operations import apply_rope


class Net(nn.Module):
    """The model: parameters by name, and its forward passes."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__()
        self.config = config
        self.first_coordinate = config.text.vocab_size
        self.first_size = self.first_coordinate + config.region.coord_out_dim
        # A name in a ParameterDict must not contain dots.
        self._parameters_by_name = nn.ParameterDict(
            {
                name.replace(".", "/"): _initial_parameter(name, shape)
                for name, shape in tensor_shapes(config).items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters under their names in the checkpoint."""
        return {
            name.replace("/", "."): value.detach()
            for name, value in self._parameters_by_name.items()
        }

    def size_id(self, bins: tuple[int, int]) -> int:
        """Return the id of a pair of size bins (width, height)."""
        width, height = bins
        return self.first_size + width * self.config.region.size_bins + height

    def size_bins(self, ids: Tensor) -> Tensor:
        """Return the size bins (…, 2) of ids (…,)."""
        bins = self.config.region.size_bins
        pairs = (ids - self.first_size).clamp(min=0)
        return torch.stack([pairs // bins, pairs % bins], -1)

    def image_tokens(self, crops: Tensor, tilings: Sequence[tuple[int, int]]) -> Tensor:
        """Return the image tokens (pictures, tokens, hidden) of all pictures.

        ``crops`` (all crops, 3, side, side) of −1 to 1 holds, for each picture, the whole picture
        and then its local crops, if its tiling (rows, columns) is more than one.
        """
        states = self._encode(crops)
        counts = [1 if tiling == (1, 1) else 1 + tiling[0] * tiling[1] for tiling in tilings]
        features = []
        for tiling, picture_states in zip(tilings, states.split(counts), strict=True):
            whole = picture_states[0]
            local = whole
            if tiling != (1, 1):
                pooling = self._pooling(tiling).to(states.device)
                local = pooling @ picture_states[1:].flatten(0, 1)
            features.append(torch.cat([whole, local], -1))
        return self._mlp("vision.proj_mlp", torch.stack(features))

    def states(self, ids: Tensor, features: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Return the last layer's states (rows, length, hidden).

        ``features`` (rows, tokens, hidden) replace the tokens after the first one.
        """
        config = self.config.text
        states = self._embed(ids)
        states = torch.cat([states[:, :1], features, states[:, 1 + features.shape[1] :]], 1)
        angles = positions[..., None, None] * rotary_frequencies(config.head_dim).to(ids.device)
        cos = torch.cat([angles.cos()] * 2, -1)
        sin = torch.cat([-angles.sin(), angles.sin()], -1)
        for layer in range(config.n_layers):
            name = f"text.blocks.{layer}"
            normed = self._norm(f"{name}.ln", states)
            qkv = self._linear(f"{name}.attn.qkv", normed).unflatten(
                -1, (3, config.n_heads, config.head_dim)
            )
            query, key, value = qkv.unbind(2)
            query = apply_rope(_spread_rotary_pairs(query), cos, sin).transpose(1, 2)
            key = apply_rope(_spread_rotary_pairs(key), cos, sin).transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                query, key, value.transpose(1, 2), attn_mask=mask
            )
            out = self._linear(f"{name}.attn.proj", attended.transpose(1, 2).flatten(2))
            states = states + out + self._mlp(f"{name}.mlp", normed)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Return the token logits (…, vocabulary)."""
        return self._linear("text.lm_head", self._norm("text.post_ln", states))

    def coordinate_logits(self, states: Tensor) -> Tensor:
        """Return the logits (…, bins) of a coordinate."""
        return self._mlp("region.coord_decoder", states)

    def size_logits(self, states: Tensor) -> Tensor:
        """Return the logits (…, 2, bins) of a width and a height."""
        return self._mlp("region.size_decoder", states).unflatten(-1, (2, -1))

    def _embed(self, ids: Tensor) -> Tensor:
        region = self.config.region
        bins = torch.arange(region.coord_out_dim, device=ids.device)[:, None] / region.coord_out_dim
        table = torch.cat([self._tensor("text.wte"), self._embed_values("coord", bins)])
        states = F.embedding(ids.clamp(max=self.first_size - 1), table)
        is_size = ids >= self.first_size
        sizes = torch.exp2(self.size_bins(ids[is_size]) / (region.size_bins - 1) * 10 - 10)
        size_states = self._embed_values("size", sizes).float()  # autocast computes in bfloat16
        return states.masked_scatter(is_size[..., None], size_states)

    def _embed_values(self, name: str, values: Tensor) -> Tensor:
        """Return the embeddings of coordinates or sizes, through their Fourier features."""
        angles = 2 * math.pi * values @ self._tensor(f"region.{name}_features")
        return self._linear(f"region.{name}_encoder", torch.cat([angles.cos(), angles.sin()], -1))

    def _encode(self, crops: Tensor) -> Tensor:
        """Return the vision encoder's states (crops, patches, hidden)."""
        config = self.config.vision
        patches = F.unfold(crops, config.enc_patch_size, stride=config.enc_patch_size).transpose(
            1, 2
        )
        states = self._linear("vision.patch_emb", patches) + self._tensor("vision.pos_emb")
        for layer in range(config.enc_n_layers):
            name = f"vision.blocks.{layer}"
            qkv = self._linear(f"{name}.attn.qkv", self._norm(f"{name}.ln1", states))
            query, key, value = qkv.unflatten(-1, (3, config.enc_n_heads, -1)).permute(
                2, 0, 3, 1, 4
            )
            attended = F.scaled_dot_product_attention(query, key, value)
            out = self._linear(f"{name}.attn.proj", attended.transpose(1, 2).flatten(2))
            states = states + out
            states = states + self._mlp(f"{name}.mlp", self._norm(f"{name}.ln2", states))
        return self._norm("vision.post_ln", states)

    def _pooling(self, tiling: tuple[int, int]) -> Tensor:
        return _pooling_matrix(tiling, self.config.vision.grid, self.config.vision.overlap_margin)

    def _mlp(self, name: str, states: Tensor) -> Tensor:
        hidden = F.gelu(self._linear(f"{name}.fc1", states), approximate="tanh")
        return self._linear(f"{name}.fc2", hidden)

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return F.linear(states, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight = self._tensor(f"{name}.weight")
        return F.layer_norm(states, weight.shape, weight, self._tensor(f"{name}.bias"))

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._parameters_by_name[name.replace(".", "/")]
        return tensor


def _spread_rotary_pairs(states: Tensor) -> Tensor:
    """Reorder a head's channels so that rotary pairs are half a head apart.

    Moondream rotates only the first half of a head, in pairs a quarter of a head apart.
    :func:`apply_rope` expects pairs half a head apart.
    """
    rotated = states.shape[-1] // 4
    first, second, unrotated = states.split([rotated, rotated, states.shape[-1] - 2 * rotated], -1)
    unrotated_first, unrotated_second = unrotated.chunk(2, -1)
    return torch.cat([first, unrotated_first, second, unrotated_second], -1)


@cache
def _pooling_matrix(tiling: tuple[int, int], grid: int, margin: int) -> Tensor:
    """Return stitching and pooling of local crops as one matrix (tokens, crops · tokens)."""
    count = tiling[0] * tiling[1] * grid**2
    crops = torch.eye(count).view(tiling[0] * tiling[1], grid, grid, count)
    pooled = F.adaptive_avg_pool2d(stitch(crops, tiling, margin).permute(2, 0, 1), (grid, grid))
    return pooled.flatten(1).T.contiguous()


def _initial_parameter(name: str, shape: tuple[int, ...]) -> nn.Parameter:
    """Return the initial value of a parameter.

    A layer keeps the magnitude of its input. Layers that add to the residual start small.
    """
    if name == "region.coord_features":
        return nn.Parameter(0.25 * 160 ** torch.linspace(0, 1, shape[1])[None])
    if name == "region.size_features":
        return nn.Parameter(4 * torch.randn(shape))
    if len(shape) == 1:
        is_norm = name.endswith("weight")
        return nn.Parameter(torch.ones(shape) if is_norm else torch.zeros(shape))
    if name == "vision.pos_emb":
        return nn.Parameter(0.2 * torch.randn(shape))
    if name == "text.wte":
        return nn.Parameter(0.5 * torch.randn(shape))
    scale = 0.3 if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else 1.0
    return nn.Parameter(scale * shape[-1] ** -0.5 * torch.randn(shape))
