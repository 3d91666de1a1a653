"""The text model of the Llama and Qwen2 families, from the weights of transformers' modules.

A layer is: RMS norm, grouped-query attention with rotary positions, RMS norm, gated MLP
(``modeling_llama.py`` and ``modeling_qwen2_5_vl.py`` in transformers). The projections of queries,
keys and values are fused into one product, and so are the MLP's gate and up projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import CacheAttention
from models.cpu.decode import LayerParts
from models.decoder import DecoderSpec
from models.linear import Linear, WeightPacker
from models.norms import RMSNorm
from models.operations import swiglu
from models.rope import RopeParameters
from raylens.engine.model import KVSpec


@dataclass(frozen=True)
class LlamaLayer:
    """The weights of one layer, and its forward pass as a :data:`models.decoder.DecoderLayer`."""

    attention_norm: RMSNorm
    qkv: Linear
    out: Linear
    mlp_norm: RMSNorm
    gate_up: Linear
    down: Linear

    def __call__(self, states: Tensor, index: int, attention: CacheAttention) -> Tensor:
        attended = attention(index, self.qkv(self.attention_norm(states)))
        states = self.out(attended, residual=states)
        return self.mlp(states, residual=states)

    def mlp(self, states: Tensor, residual: Tensor) -> Tensor:
        """Return the MLP's output plus ``residual``."""
        return self.down(swiglu(self.gate_up(self.mlp_norm(states))), residual)

    @property
    def parts(self) -> LayerParts:
        return LayerParts(
            self.attention_norm,
            self.qkv,
            self.out,
            self.mlp_norm,
            self.gate_up,
            self.down,
            gated=True,
        )


def decoder_spec(text_model: nn.Module, head: nn.Linear, packer: WeightPacker) -> DecoderSpec:
    """Pack the weights of a text model and of its head."""
    model: Any = text_model
    config = model.config
    num_query_heads = int(config.num_attention_heads)
    eps = float(config.rms_norm_eps)
    embeddings = packer.to_device(model.get_input_embeddings().weight)
    layers = [_layer(layer, eps, packer) for layer in model.layers]
    return DecoderSpec(
        embed=lambda ids: F.embedding(ids, embeddings),
        layers=layers,
        norm=RMSNorm(packer.to_device(model.norm.weight), eps),
        head=packer.pack_layers(head),
        rope=RopeParameters(
            packer.to_device(model.rotary_emb.inv_freq).float(),
            float(model.rotary_emb.attention_scaling),
            (config.rope_parameters or {}).get("mrope_section"),
        ),
        num_query_heads=num_query_heads,
        kv_spec=KVSpec(*kv_shape(config), embeddings.dtype, str(embeddings.device)),
        layer_parts=[layer.parts for layer in layers],
    )


def kv_shape(config: Any) -> tuple[int, int, int]:
    """Return the numbers of layers and of heads that keep keys and values, and a head's size."""
    head_dim = getattr(config, "head_dim", None)
    return (
        int(config.num_hidden_layers),
        int(config.num_key_value_heads),
        int(head_dim or config.hidden_size // config.num_attention_heads),
    )


def _layer(layer: Any, eps: float, packer: WeightPacker) -> LlamaLayer:
    attention = layer.self_attn
    mlp = layer.mlp
    return LlamaLayer(
        attention_norm=RMSNorm(packer.to_device(layer.input_layernorm.weight), eps),
        qkv=packer.pack_layers(
            attention.q_proj, attention.k_proj, attention.v_proj, allows_int4=True
        ),
        out=packer.pack_layers(attention.o_proj, allows_int4=True),
        mlp_norm=RMSNorm(packer.to_device(layer.post_attention_layernorm.weight), eps),
        gate_up=packer.pack_layers(mlp.gate_proj, mlp.up_proj, allows_int4=True),
        down=packer.pack_layers(mlp.down_proj, allows_int4=True),
    )
