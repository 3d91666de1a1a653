"""The text model (``text.py`` and ``rope.py`` upstream): attention and MLP side by side behind one
norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.attention import CacheAttention
from models.decoder import DecoderSpec
from models.linear import Linear
from models.moondream.config import TextConfig
from models.moondream.weights import Weights
from models.rope import Rotary
from models.siglip import Norm
from raylens.engine.model import KVShape

THETA = 10_000.0


@dataclass(frozen=True)
class MoondreamLayer:
    norm: Norm
    qkv: Linear
    out: Linear
    expand: Linear
    """GELU (its tanh approximation) included."""
    contract: Linear

    def __call__(self, states: Tensor, index: int, attention: CacheAttention) -> Tensor:
        normed = self.norm(states)
        states = self.out(attention(index, self.qkv(normed)), states)
        return self.contract(self.expand(normed), states)


def decoder_spec(
    config: TextConfig, weights: Weights, embed: Callable[[Tensor], Tensor], like: Tensor
) -> DecoderSpec:
    """What a decoder of these weights is made of; ``like``: a tensor of its type on its device."""
    return DecoderSpec(
        embed=embed,
        layers=[
            _layer(f"text.blocks.{index}", config, weights) for index in range(config.n_layers)
        ],
        norm=weights.norm("text.post_ln", config.dim),
        head=weights.linear("text.lm_head", config.dim, config.vocab_size),
        rotary=Rotary(frequencies(config.head_dim).to(like.device)),
        heads=config.n_heads,
        kv_shape=KVShape(
            config.n_layers, config.n_kv_heads, config.head_dim, like.dtype, str(like.device)
        ),
    )


def _layer(name: str, config: TextConfig, weights: Weights) -> MoondreamLayer:
    dim, inner = config.dim, config.ff_dim
    outputs = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    return MoondreamLayer(
        norm=weights.norm(f"{name}.ln", dim),
        qkv=weights.linear(f"{name}.attn.qkv", dim, outputs, rows=pairs_apart(config)),
        out=weights.linear(f"{name}.attn.proj", dim, dim),
        expand=weights.linear(f"{name}.mlp.fc1", dim, inner, "gelu"),
        contract=weights.linear(f"{name}.mlp.fc2", inner, dim),
    )


def frequencies(head_dim: int) -> Tensor:
    """Of a head's pairs: half of them turn, and the others stand still."""
    turning = head_dim // 4
    turns = 1 / THETA ** (torch.arange(turning, dtype=torch.float32) / turning)
    return torch.cat([turns, torch.zeros(head_dim // 2 - turning)])


def pairs_apart(config: TextConfig) -> Tensor:
    """The order of ``qkv``'s outputs in which a head's halves are the pairs that turn together, as
    the decoder turns them. Upstream only a head's first half turns, and its halves again are the
    pairs. Queries and keys are put in order alike, so that their products stay the same; values
    stay as they are."""
    size, turning = config.head_dim, config.head_dim // 4
    still = torch.arange(2 * turning, size).chunk(2)
    head = torch.cat(
        [torch.arange(turning), still[0], torch.arange(turning, 2 * turning), still[1]]
    )
    turned = config.n_heads + config.n_kv_heads
    keys = (torch.arange(turned)[:, None] * size + head).flatten()
    return torch.cat([keys, torch.arange(turned * size, (turned + config.n_kv_heads) * size)])
