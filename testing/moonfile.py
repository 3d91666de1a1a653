"""Writes ``.mf`` files: a checkpoint of Moondream as ONNX graphs with int8 weights.

The graphs have the parameters, and around each layer the nodes, that PyTorch's exporter and ONNX
Runtime's ``quantize_dynamic`` write. What lies between the layers is left out: readers of weights
don't need it.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from models.moondream.config import MoondreamConfig, Template

Array = NDArray[np.float32]
COMPONENTS = {
    "vision_encoder": ("vision.pos_emb", "vision.patch_emb", "vision.blocks", "vision.post_ln"),
    "vision_projection": ("vision.proj_mlp",),
    "text_encoder": ("text.wte",),
    "text_decoder": ("text.blocks", "text.post_ln", "text.lm_head"),
    "coord_encoder": ("region.coord_features", "region.coord_encoder"),
    "coord_decoder": ("region.coord_decoder",),
    "size_encoder": ("region.size_features", "region.size_encoder"),
    "size_decoder": ("region.size_decoder",),
}
"""The graphs, and the tensors in each."""
_NORMS = ("ln.weight", "ln1.weight", "ln2.weight")


def write_moonfile(
    config: MoondreamConfig,
    tensors: Mapping[str, Array],
    tokenizer: Tokenizer,
    *,
    per_column: bool = False,
) -> tuple[bytes, dict[str, Array]]:
    """Return a file, and the tensors that its rounded weights stand for.

    ``per_column`` gives each output of a layer a scale of its own.
    """
    rounded = dict(tensors)
    entries = {}
    for component, prefixes in COMPONENTS.items():
        names = [name for name in tensors if name.startswith(prefixes)]
        writer = _GraphWriter(per_column)
        for name in names:
            if not name.endswith(".weight") or name.endswith(_NORMS):
                rounded[name] = writer.add_parameter(name, tensors[name])
        for name in names:
            if name.endswith(".weight") and not name.endswith(_NORMS):
                rounded[name] = writer.add_layer(name, tensors[name])
        entries[f"{component}.onnx"] = writer.serialize(component)
    cache = np.zeros((config.text.n_layers, 2, 1, config.text.n_kv_heads, 1, config.text.head_dim))
    buffer = io.BytesIO()
    np.save(buffer, cache.astype(np.float16))
    entries["initial_kv_cache.npy"] = buffer.getvalue()
    entries["tokenizer.json"] = tokenizer.to_str().encode()
    entries["config.json"] = json.dumps(_config(config)).encode()
    return pack(entries), rounded


def pack(entries: Mapping[str, bytes]) -> bytes:
    """Return a container with these entries."""
    parts = [b"MOON\x01"]
    for name, content in entries.items():
        encoded = f"moondream/{name}".encode()
        parts += [struct.pack("!I", len(encoded)), encoded]
        parts += [struct.pack("!Q", len(content)), content]
    return b"".join(parts)


def _config(config: MoondreamConfig) -> dict[str, Any]:
    tokenizer = config.tokenizer
    templates: dict[str, Any] = {"caption": tokenizer.caption}
    for name in ("query", "detect", "point"):
        template: Template = getattr(tokenizer, name)
        templates[name] = {"prefix": template.prefix, "suffix": template.suffix}
    tokens = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    return {"special_tokens": tokens, "templates": templates}


class _GraphWriter:
    def __init__(self, per_column: bool) -> None:
        self._per_column = per_column
        self._initializers: list[TensorProto] = []
        self._nodes: list[Any] = []

    def serialize(self, name: str) -> bytes:
        graph = helper.make_graph(self._nodes, name, [], [], self._initializers)
        return bytes(helper.make_model(graph).SerializeToString())

    def add_parameter(self, name: str, values: Array) -> Array:
        """Add a parameter. Tables (rows, columns) are rounded."""
        if values.ndim != 2:
            self._add(name, values)
            return values
        return self._add_quantized(name, values)

    def add_layer(self, name: str, weight: Array) -> Array:
        """Add a weight (outputs, inputs), transposed and under another name, and its bias."""
        layer = name.removesuffix(".weight")
        factor = f"onnx::MatMul_{len(self._nodes)}"
        rounded = self._add_quantized(factor, np.ascontiguousarray(weight.T))
        product = f"/{layer}/MatMul_output_0"
        scale = f"{product}_scales"
        self._node("DynamicQuantizeLinear", [f"/{layer}/x"], *(f"/{layer}/x_{n}" for n in "qsz"))
        self._node("Mul", [f"/{layer}/x_s", f"{factor}_scale"], scale)
        self._node(
            "MatMulInteger",
            [f"/{layer}/x_q", f"{factor}_quantized", f"/{layer}/x_z", f"{factor}_zero_point"],
            f"{product}_int",
        )
        self._node("Cast", [f"{product}_int"], f"{product}_cast", to=TensorProto.FLOAT)
        self._node("Mul", [f"{product}_cast", scale], product)
        self._node("Add", [f"{layer}.bias", product], f"/{layer}/Add_output_0")
        return np.ascontiguousarray(rounded.T)

    def _add_quantized(self, name: str, values: Array) -> Array:
        """Add values (rows, columns) as bytes, and return what these stand for."""
        axis = 0 if self._per_column else None
        scale = np.asarray(np.abs(values).max(axis) / 127, np.float32)
        # A zero point other than 0, so that a reader has to subtract it.
        zero_point = np.ones_like(scale, np.int8)
        quantized = np.clip(np.round(values / scale) + 1, -128, 127).astype(np.int8)
        self._add(f"{name}_quantized", quantized)
        self._add(f"{name}_scale", scale)
        self._add(f"{name}_zero_point", zero_point)
        return np.asarray((quantized.astype(np.float32) - 1) * scale, np.float32)

    def _add(self, name: str, values: NDArray[Any]) -> None:
        self._initializers.append(numpy_helper.from_array(values, name))

    def _node(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
