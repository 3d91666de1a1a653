"""The text model (``text.py`` and ``rope.py`` upstream).

Attention and MLP of a layer run in parallel on the output of one norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from models.attention import CacheAttention
from models.cpu.decode import LayerParts
from models.decoder import DecoderSpec
from models.linear import Linear
from models.moondream.config import TextConfig
from models.moondream.weights import Weights
from models.rope import RopeParameters
from models.siglip import Norm
from raylens.engine.model import KVSpec

THETA = 10_000.0


@dataclass(frozen=True)
class MoondreamLayer:
    """The weights of one layer, and its forward pass as a :data:`models.decoder.DecoderLayer`."""

    norm: Norm
    qkv: Linear
    out: Linear
    expand: Linear
    """Includes GELU (its tanh approximation)."""
    contract: Linear

    def __call__(self, states: Tensor, index: int, attention: CacheAttention) -> Tensor:
        normed = self.norm(states)
        states = self.out(attention(index, self.qkv(normed)), residual=states)
        return self.contract(self.expand(normed), residual=states)

    @property
    def parts(self) -> LayerParts:
        return LayerParts(
            self.norm, self.qkv, self.out, None, self.expand, self.contract, gated=False
        )


def decoder_spec(
    config: TextConfig, weights: Weights, embed: Callable[[Tensor], Tensor], like: Tensor
) -> DecoderSpec:
    """Build the decoder's specification from the weights.

    ``like`` is a tensor with the dtype and the device of the KV cache.
    """
    layers = [_layer(f"text.blocks.{index}", config, weights) for index in range(config.n_layers)]
    return DecoderSpec(
        embed=embed,
        layers=layers,
        norm=weights.norm("text.post_ln", config.dim),
        head=weights.linear("text.lm_head", config.dim, config.vocab_size),
        rope=RopeParameters(rotary_frequencies(config.head_dim).to(like.device)),
        num_query_heads=config.n_heads,
        kv_spec=KVSpec(
            config.n_layers, config.n_kv_heads, config.head_dim, like.dtype, str(like.device)
        ),
        layer_parts=[layer.parts for layer in layers],
    )


def _layer(name: str, config: TextConfig, weights: Weights) -> MoondreamLayer:
    dim = config.dim
    inner = config.ff_dim
    qkv_dim = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    linear = partial(weights.linear, allows_int4=True)
    return MoondreamLayer(
        norm=weights.norm(f"{name}.ln", dim),
        qkv=linear(f"{name}.attn.qkv", dim, qkv_dim, output_order=qkv_order(config)),
        out=linear(f"{name}.attn.proj", dim, dim),
        expand=linear(f"{name}.mlp.fc1", dim, inner, "gelu"),
        contract=linear(f"{name}.mlp.fc2", inner, dim),
    )


def rotary_frequencies(head_dim: int) -> Tensor:
    """Return the rotary frequencies of a head's pairs (head_dim / 2,).

    Only the first half of the pairs is rotated. The other half has frequency 0.
    """
    rotated = head_dim // 4
    nonzero = 1 / THETA ** (torch.arange(rotated, dtype=torch.float32) / rotated)
    return torch.cat([nonzero, torch.zeros(head_dim // 2 - rotated)])


def qkv_order(config: TextConfig) -> Tensor:
    """Return the order of the outputs of ``qkv`` that fits the decoder's RoPE.

    The decoder rotates pairs (i, i + head_dim / 2) of a head. Upstream rotates only the first half
    of a head, in pairs (i, i + head_dim / 4). The same permutation of queries and keys leaves
    their products unchanged. Values keep their order.
    """
    size = config.head_dim
    rotated = config.head_dim // 4
    first = torch.arange(rotated)
    second = torch.arange(rotated, 2 * rotated)
    unrotated_first, unrotated_second = torch.arange(2 * rotated, size).chunk(2)
    head_order = torch.cat([first, unrotated_first, second, unrotated_second])
    rotated_heads = config.n_heads + config.n_kv_heads
    queries_and_keys = (torch.arange(rotated_heads)[:, None] * size + head_order).flatten()
    all_heads = rotated_heads + config.n_kv_heads
    values = torch.arange(rotated_heads * size, all_heads * size)
    return torch.cat([queries_and_keys, values])
