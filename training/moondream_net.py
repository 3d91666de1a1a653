"""Moondream in plain PyTorch over named parameters, to train the pocket checkpoint: whole batches,
no cache.

The names and shapes are the checkpoint's own, as :func:`models.moondream.model.tensor_shapes` lists
them. Ids are positive here: tokens, then coordinates' bins, then sizes' two bins.
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
from models.moondream.text import frequencies
from models.operations import apply_rope


class Net(nn.Module):
    """The parameters by name, and what is computed with them."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__()
        self.config = config
        self.first_coordinate = config.text.vocab_size
        self.first_size = self.first_coordinate + config.region.coord_out_dim
        self._parameters_by_name = nn.ParameterDict(
            {
                name.replace(".", "/"): _initial(name, shape)
                for name, shape in tensor_shapes(config).items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """As the checkpoint holds them."""
        return {
            name.replace("/", "."): value.detach()
            for name, value in self._parameters_by_name.items()
        }

    def size_id(self, bins: tuple[int, int]) -> int:
        width, height = bins
        return self.first_size + width * self.config.region.size_bins + height

    def size_bins(self, ids: Tensor) -> Tensor:
        """(…,) -> (…, 2)."""
        bins = self.config.region.size_bins
        sizes = (ids - self.first_size).clamp(min=0)
        return torch.stack([sizes // bins, sizes % bins], -1)

    def image_tokens(self, crops: Tensor, tilings: Sequence[tuple[int, int]]) -> Tensor:
        """(pictures, tokens, hidden) of crops (all crops, 3, side, side) of −1 to 1: each picture's
        whole, and, where its tiling is more than one, its local crops."""
        states = self._encode(crops)
        counts = [1 if tiling == (1, 1) else 1 + tiling[0] * tiling[1] for tiling in tilings]
        seen = []
        for tiling, own in zip(tilings, states.split(counts), strict=True):
            local = own[0]
            if tiling != (1, 1):
                local = self._pooling(tiling).to(own.device) @ own[1:].flatten(0, 1)
            seen.append(torch.cat([own[0], local], -1))
        return self._mlp("vision.proj_mlp", torch.stack(seen))

    def states(self, ids: Tensor, features: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The last layer's (rows, length, hidden). ``features`` (rows, tokens, hidden) stand behind
        the first token."""
        config = self.config.text
        states = self._embed(ids)
        states = torch.cat([states[:, :1], features, states[:, 1 + features.shape[1] :]], 1)
        angles = positions[..., None, None] * frequencies(config.head_dim).to(ids.device)
        cos, sin = (torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1))
        for layer in range(config.n_layers):
            name = f"text.blocks.{layer}"
            normed = self._norm(f"{name}.ln", states)
            qkv = self._linear(f"{name}.attn.qkv", normed).unflatten(
                -1, (3, config.n_heads, config.head_dim)
            )
            query, key, value = qkv.unbind(2)
            query, key = (
                apply_rope(_apart(part), cos, sin).transpose(1, 2) for part in (query, key)
            )
            mixed = F.scaled_dot_product_attention(
                query, key, value.transpose(1, 2), attn_mask=mask
            )
            out = self._linear(f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
            states = states + out + self._mlp(f"{name}.mlp", normed)
        return states

    def logits(self, states: Tensor) -> Tensor:
        return self._linear("text.lm_head", self._norm("text.post_ln", states))

    def coordinate_logits(self, states: Tensor) -> Tensor:
        return self._mlp("region.coord_decoder", states)

    def size_logits(self, states: Tensor) -> Tensor:
        """(…, 2, bins)."""
        return self._mlp("region.size_decoder", states).unflatten(-1, (2, -1))

    def _embed(self, ids: Tensor) -> Tensor:
        region = self.config.region
        bins = torch.arange(region.coord_out_dim, device=ids.device)[:, None] / region.coord_out_dim
        table = torch.cat([self._tensor("text.wte"), self._waves("coord", bins)])
        states = F.embedding(ids.clamp(max=self.first_size - 1), table)
        is_size = ids >= self.first_size
        sizes = torch.exp2(self.size_bins(ids[is_size]) / (region.size_bins - 1) * 10 - 10)
        return states.masked_scatter(is_size[..., None], self._waves("size", sizes))

    def _waves(self, name: str, values: Tensor) -> Tensor:
        turns = 2 * math.pi * values @ self._tensor(f"region.{name}_features")
        return self._linear(f"region.{name}_encoder", torch.cat([turns.cos(), turns.sin()], -1))

    def _encode(self, crops: Tensor) -> Tensor:
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
            mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
            states = states + self._linear(f"{name}.attn.proj", mixed)
            states = states + self._mlp(f"{name}.mlp", self._norm(f"{name}.ln2", states))
        return self._norm("vision.post_ln", states)

    def _pooling(self, tiling: tuple[int, int]) -> Tensor:
        return _pooling(tiling, self.config.vision.grid, self.config.vision.overlap_margin)

    def _mlp(self, name: str, states: Tensor) -> Tensor:
        return self._linear(
            f"{name}.fc2", F.gelu(self._linear(f"{name}.fc1", states), approximate="tanh")
        )

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return F.linear(states, self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight = self._tensor(f"{name}.weight")
        return F.layer_norm(states, weight.shape, weight, self._tensor(f"{name}.bias"))

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._parameters_by_name[name.replace(".", "/")]
        return tensor


def _apart(states: Tensor) -> Tensor:
    """A head's first half turns, in pairs of its own halves: these pairs to the halves of the whole
    head."""
    turning = states.shape[-1] // 4
    first, second, still = states.split([turning, turning, states.shape[-1] - 2 * turning], -1)
    one, other = still.chunk(2, -1)
    return torch.cat([first, one, second, other], -1)


@cache
def _pooling(tiling: tuple[int, int], grid: int, margin: int) -> Tensor:
    """Stitching and pooling as one product: (tokens, crops · tokens)."""
    count = tiling[0] * tiling[1] * grid**2
    crops = torch.eye(count).view(tiling[0] * tiling[1], grid, grid, count)
    pooled = F.adaptive_avg_pool2d(stitch(crops, tiling, margin).permute(2, 0, 1), (grid, grid))
    return pooled.flatten(1).T.contiguous()


def _initial(name: str, shape: tuple[int, ...]) -> nn.Parameter:
    """Layers keep the size of what goes through them; what adds to the residual stream begins
    small."""
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
