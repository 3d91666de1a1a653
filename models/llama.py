"""The text model of Llama's and Qwen2's kind, over its weights in transformers' modules.

A layer is: root mean square norm, grouped-query attention with rotary positions, norm, gated MLP
(``modeling_llama.py`` and ``modeling_qwen2_5_vl.py`` in transformers). Query, key and value are one
product here, gate and up another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.decoder import Attend, DecoderSpec, Rotary
from models.linear import Linear, Packer
from models.operations import swiglu
from raylens.engine.model import KVShape


@dataclass(frozen=True)
class RMSNorm:
    weight: Tensor
    eps: float

    def __call__(self, states: Tensor) -> Tensor:
        return F.rms_norm(states, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True)
class LlamaLayer:
    attention_norm: RMSNorm
    qkv: Linear
    out: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    def __call__(self, states: Tensor, attend: Attend) -> Tensor:
        states = self.out(attend(self.qkv(self.attention_norm(states))), states)
        return self.mlp(states, states)

    def mlp(self, states: Tensor, residual: Tensor) -> Tensor:
        """What the MLP makes of the states, added to ``residual``."""
        return self.down(swiglu(self.gate_up(self.mlp_norm(states))), residual)


def decoder_spec(text_model: nn.Module, head: nn.Linear, packer: Packer) -> DecoderSpec:
    """What a decoder of these weights is made of."""
    model: Any = text_model
    config = model.config
    heads, eps = int(config.num_attention_heads), float(config.rms_norm_eps)
    embeddings = packer.tensor(model.get_input_embeddings().weight)
    kv_shape = KVShape(
        layers=len(model.layers),
        heads=int(config.num_key_value_heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        dtype=embeddings.dtype,
        device=str(embeddings.device),
    )
    return DecoderSpec(
        embed=lambda ids: F.embedding(ids, embeddings),
        layers=[_layer(layer, eps, packer) for layer in model.layers],
        norm=RMSNorm(packer.tensor(model.norm.weight), eps),
        head=packer.linear(head),
        rotary=Rotary(
            packer.tensor(model.rotary_emb.inv_freq).float(),
            float(model.rotary_emb.attention_scaling),
            (config.rope_parameters or {}).get("mrope_section"),
        ),
        heads=heads,
        kv_shape=kv_shape,
    )


def _layer(layer: Any, eps: float, packer: Packer) -> LlamaLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return LlamaLayer(
        attention_norm=RMSNorm(packer.tensor(layer.input_layernorm.weight), eps),
        qkv=packer.linear(attention.q_proj, attention.k_proj, attention.v_proj),
        out=packer.linear(attention.o_proj),
        mlp_norm=RMSNorm(packer.tensor(layer.post_attention_layernorm.weight), eps),
        gate_up=packer.linear(mlp.gate_proj, mlp.up_proj),
        down=packer.linear(mlp.down_proj),
    )
