"""The text model of the Llama family as a GGUF file, which llama.cpp reads.

A file is a header, fields, the tensors' names, shapes and places, and their values. The format is
version 3 of ``docs/gguf.md`` in the ggml repository; names of fields and tensors are those of
``gguf-py/gguf/constants.py`` in llama.cpp. The file has no tokenizer: llama.cpp needs none to
compute.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
"""Bytes. A tensor's values begin at a multiple of it, counted from the first tensor's."""
UINT32, FLOAT32, STRING = 4, 6, 8
"""Types of fields."""
TENSOR_TYPES = {torch.float32: 0, torch.bfloat16: 30}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""transformers' modules, by llama.cpp's names."""


def write_gguf(path: Path, text_model: Any, head: Any) -> None:
    """Write transformers' text model of the Llama family, and its head, in their dtype."""
    tensors = dict(llama_tensors(text_model, head))
    fields = llama_fields(text_model.config)
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(fields)))
        for key, value in fields.items():
            file.write(_string(key) + _field_value(value))
        start = 0
        for name, tensor in tensors.items():
            # The fastest dimension comes first.
            shape = tuple(reversed(tensor.shape))
            file.write(_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", TENSOR_TYPES[tensor.dtype], start))
            start += tensor.nbytes + _padding(tensor.nbytes)
        _pad(file)
        for tensor in tensors.values():
            tensor.contiguous().view(torch.uint8).numpy().tofile(file)
            _pad(file)


def llama_fields(config: Any) -> dict[str, str | int | float]:
    """Return the fields of a file, from transformers' configuration of a text model."""
    head_dim = int(config.head_dim)
    return {
        "general.architecture": "llama",
        "llama.vocab_size": int(config.vocab_size),
        "llama.context_length": int(config.max_position_embeddings),
        "llama.embedding_length": int(config.hidden_size),
        "llama.block_count": int(config.num_hidden_layers),
        "llama.feed_forward_length": int(config.intermediate_size),
        "llama.attention.head_count": int(config.num_attention_heads),
        "llama.attention.head_count_kv": int(config.num_key_value_heads),
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "tokenizer.ggml.model": "none",
    }


def llama_tensors(text_model: Any, head: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield llama.cpp's names and tensors: norms in float32, other weights in their dtype."""
    yield "token_embd.weight", text_model.get_input_embeddings().weight.detach()
    yield "output_norm.weight", text_model.norm.weight.detach().float()
    yield "output.weight", head.weight.detach()
    head_dim = int(text_model.config.head_dim)
    for number, layer in enumerate(text_model.layers):
        for name, module in LAYER_TENSORS.items():
            weight = layer.get_submodule(module).weight.detach()
            if name in ("attn_q", "attn_k"):
                weight = interleave_pairs(weight, head_dim)
            yield f"blk.{number}.{name}.weight", weight.float() if weight.dim() == 1 else weight


def interleave_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the outputs (heads × head_dim, inputs) of the projection of queries or keys.

    transformers rotates a head's outputs i and i + head_dim / 2 together; in llama.cpp's ``llama``
    architecture these are neighbors.
    """
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _field_value(value: str | int | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    return struct.pack("<If", FLOAT32, value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padding(size: int) -> int:
    """Return the number of bytes from ``size`` to the next multiple of the alignment."""
    return -size % ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_padding(file.tell())))
