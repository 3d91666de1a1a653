"""Linear layers in the form in which this machine multiplies fastest.

On a CPU, oneDNN reorders a plain bfloat16 weight at every call. Here it is reordered once, when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Quantize = Literal["int8"]
Linear = Callable[[Tensor], Tensor]
"""(…, inputs) -> (…, outputs)."""
_ROWS = 8
"""Rows for which a packed weight's layout is chosen: a decode step's. Larger batches run as fast with it."""


def linear(*layers: nn.Linear, quantize: Quantize | None = None, activation: str = "none") -> Linear:
    """One layer out of several that read the same input, their outputs side by side.

    ``activation``: ``none``, or ``gelu`` (its tanh approximation).
    """
    weight = torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    assert len(biases) in (0, len(layers))
    return from_weight(weight, torch.cat(biases) if biases else None, quantize, activation)


def from_weight(
    weight: Tensor, bias: Tensor | None = None, quantize: Quantize | None = None, activation: str = "none"
) -> Linear:
    """A layer of a weight (outputs, inputs) and a bias (outputs,)."""
    if quantize == "int8":
        return _Int8(weight, bias, activation)
    if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and _has_bfloat16():
        return _Packed(weight, bias, activation)
    return _Plain(weight, bias, activation)


class _Plain:
    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight, self._bias, self._gelu = weight, bias, activation == "gelu"

    def __call__(self, states: Tensor) -> Tensor:
        out = F.linear(states, self._weight, self._bias)
        return F.gelu(out, approximate="tanh") if self._gelu else out


class _Packed:
    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias
        self._activation, self._algorithm = activation, "tanh" if activation == "gelu" else ""

    def __call__(self, states: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self._weight, self._bias, self._activation, [], self._algorithm
        )
        return out


def _has_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 in hardware here; elsewhere a plain layer is as good."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
