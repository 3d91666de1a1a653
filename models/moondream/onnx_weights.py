"""The parameters in an ONNX graph, by the names that they had in PyTorch.

Exporters keep the names of biases and norms. PyTorch's transposes the weights of linear layers and
names them anew, so they are found by following the graph from the layer's bias to the product that
it is added to. Of quantized weights, those of ONNX Runtime's ``quantize_dynamic`` and of
``DequantizeLinear`` are read: ``scale · (value − zero point)``, per tensor or per column.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.moondream.weights import CheckpointMismatch

MAX_DISTANCE = 8
"""Nodes between a product and its bias."""
_SEPARATORS = re.compile(r"[./]")
_PRODUCTS = frozenset(
    {"MatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "Gemm", "Conv"}
)
_QUANTIZED = "_quantized"


class OnnxGraph:
    """A graph. Raises ``CheckpointMismatch``, which names it, for what it lacks."""

    def __init__(self, graph: Any, to_array: Any, name: str) -> None:
        self._name = name
        self._to_array = to_array
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {output: node for node in graph.node for output in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for value in node.input:
                self._consumers.setdefault(value, []).append(node)
        # Exporters store equal tensors once, and give the others' names to copies.
        copies = [node.output[0] for node in graph.node if node.op_type == "Identity"]
        constants = [value for value in copies if self._constant(value) is not None]
        self.names = [*self._initializers, *constants]

    @classmethod
    def parse(cls, data: bytes, name: str) -> OnnxGraph:
        """Parse a serialized model. Raises ``ImportError`` without the package ``onnx``."""
        try:
            import onnx
            from onnx import numpy_helper
        except ImportError as error:
            message = "files of the form .mf need the package onnx: install raylens[mf]"
            raise ImportError(message) from error
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load_model_from_string(data)
        except DecodeError:
            raise CheckpointMismatch(f"{name}.onnx: not an ONNX model") from None
        return cls(model.graph, numpy_helper.to_array, name)

    def size(self, name: str) -> int:
        """Return the number of values in a tensor."""
        return self.tensor(name).numel()

    def tensor(self, name: str) -> Tensor:
        """Return a parameter in PyTorch's layout and float32."""
        value = self._find(name)
        if value is not None:
            array = self._constant(value)
        elif name.endswith(".weight"):
            array = self._weight(name)
        else:
            array = None
        if array is None:
            raise CheckpointMismatch(f"tensor {name}: missing in {self._name}.onnx")
        if name.endswith("patch_emb.weight"):
            array = array.reshape(len(array), -1)  # A convolution's, in the same order.
        array = np.asarray(array, np.float32)
        return torch.from_numpy(array if array.flags.writeable else array.copy())

    def _find(self, name: str) -> str | None:
        """Return the graph's name of a parameter: that with the longest common ending, if it is the
        only one."""
        wanted = _SEPARATORS.split(name)
        lengths = {value: _common_ending(wanted, _split(value)) for value in self.names}
        longest = max(lengths.values(), default=0)
        found = [value for value, length in lengths.items() if length == longest]
        if len(found) != 1:
            return None
        says_enough = longest > 1 or wanted[-1] not in ("weight", "bias")
        is_whole = longest == len(_split(found[0]))
        return found[0] if longest and (says_enough or is_whole) else None

    def _weight(self, name: str) -> NDArray[Any] | None:
        """Return a layer's weight (outputs, inputs), found by its bias."""
        bias = self._find(f"{name.removesuffix('weight')}bias")
        if bias is None:
            return None
        nodes = self._consumers.get(bias, [])
        for _ in range(MAX_DISTANCE):
            for node in nodes:
                if node.op_type in _PRODUCTS and (weight := self._factor(node)) is not None:
                    return weight
            inputs = [value for node in nodes for value in node.input]
            nodes = [self._producers[value] for value in inputs if value in self._producers]
        return None

    def _factor(self, node: Any) -> NDArray[Any] | None:
        """Return the constant factor of a product (outputs, inputs …); None if it has none."""
        if len(node.input) < 2:
            return None
        factor = self._constant(node.input[1])
        if factor is None or factor.ndim < 2:
            return None
        is_transposed = node.op_type == "Conv" or _attribute(node, "transB", 0)
        return factor if is_transposed else factor.T

    def _constant(self, value: str) -> NDArray[Any] | None:
        """Return a value that does not depend on the graph's inputs, in floating point."""
        if value in self._initializers:
            return self._read(value)
        if value not in self._producers:
            return None
        node = self._producers[value]
        match node.op_type:
            case "Identity" | "Cast":
                return self._constant(node.input[0])
            case "Transpose":
                array = self._constant(node.input[0])
                return None if array is None else array.transpose(_attribute(node, "perm", None))
            case "Constant":
                attribute = next((item for item in node.attribute if item.name == "value"), None)
                return None if attribute is None else np.asarray(self._to_array(attribute.t))
            case "DequantizeLinear" if node.input[0] in self._initializers:
                quantized, scale, *zero_point = node.input
                axis = _attribute(node, "axis", 1)
                return self._dequantize(quantized, scale, "".join(zero_point), axis)
        return None

    def _read(self, name: str) -> NDArray[Any]:
        base = name.removesuffix(_QUANTIZED)
        scale = f"{base}_scale"
        if base != name and scale in self._initializers:
            return self._dequantize(name, scale, f"{base}_zero_point", -1)
        return np.asarray(self._to_array(self._initializers[name]))

    def _dequantize(
        self, value: str, scale: str, zero_point: str, axis: int
    ) -> NDArray[np.float32]:
        array = self._to_array(self._initializers[value]).astype(np.float32)
        if zero_point in self._initializers:
            array -= self._vector(zero_point, array.ndim, axis)
        array *= self._vector(scale, array.ndim, axis)
        return array

    def _vector(self, name: str, ndim: int, axis: int) -> NDArray[np.float32]:
        """Return a scale or zero point, shaped to go along an axis of a tensor."""
        array = np.asarray(self._to_array(self._initializers[name]), np.float32)
        if array.size == 1:
            return array.reshape(())
        shape = [1] * ndim
        shape[axis] = array.size
        return array.reshape(shape)


def _split(value: str) -> list[str]:
    return _SEPARATORS.split(value.removesuffix(_QUANTIZED))


def _common_ending(first: list[str], second: list[str]) -> int:
    length = 0
    for one, other in zip(reversed(first), reversed(second), strict=False):
        if one != other:
            break
        length += 1
    return length


def _attribute(node: Any, name: str, default: Any) -> Any:
    """Return an attribute of integers."""
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or attribute.i
    return default
