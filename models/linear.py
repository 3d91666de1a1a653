"""Linear layers in the form in which this machine multiplies fastest.

On a CPU, oneDNN reorders a plain bfloat16 weight at every call. Here it is reordered once, when the
model is loaded. Which form is the fastest is measured in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Quantize = Literal["int8"]
_ROWS = 8
"""Rows for which a packed weight's layout is chosen: a decode step's. Larger batches run as fast
with it."""

_SIGN = 128
"""Added to a signed byte, its sign bit turned over: the zero point of the unsigned one."""


class Linear(Protocol):
    """A linear layer, whatever its form."""

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        """(…, inputs) -> (…, outputs), with ``residual`` added, if it is given; what was in
        ``residual`` may be lost."""
        ...


@dataclass(frozen=True)
class Packer:
    """Brings weights to the device that they are used on, and to the form in which they are used
    there: one layer after another, so that a device never holds them twice."""

    device: str = "cpu"
    quantize: Quantize | None = None
    consume: bool = False
    """Layers give up their own weights once these are packed."""

    def tensor(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.device)

    def linear(self, *layers: nn.Linear, activation: str = "none") -> Linear:
        """One layer out of several that read the same input, their outputs side by side.

        ``activation``: ``none``, or ``gelu`` (its tanh approximation). Raises ``ValueError`` where
        this machine can't ``quantize`` so.
        """
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers))
        packed = self.weight(
            _side_by_side(weights), _side_by_side(biases) if biases else None, activation
        )
        if self.consume:
            for layer in layers:
                layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        return packed

    def weight(
        self, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
    ) -> Linear:
        """A layer of a weight (outputs, inputs) and a bias (outputs,)."""
        weight, bias = self.tensor(weight), None if bias is None else self.tensor(bias)
        if self.quantize == "int8":
            return _Int8(weight, bias, activation)
        if weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and _packs_bfloat16():
            return _Packed(weight, bias, activation)
        return _Plain(weight, bias, activation)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _Plain:
    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight, self._bias, self._gelu = weight, bias, activation == "gelu"

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None and states.is_cuda and self._bias is None and not self._gelu:
            residual.flatten(0, -2).addmm_(
                states.flatten(0, -2), self._weight.T
            )  # the product adds on its way out
            return residual
        if self._gelu and states.is_cuda and self._bias is not None:
            product = torch._addmm_activation(
                self._bias, states.flatten(0, -2), self._weight.T, use_gelu=True
            )
            out = product.unflatten(0, states.shape[:-1])
        else:
            out = F.linear(states, self._weight, self._bias)
            out = F.gelu(out, approximate="tanh") if self._gelu else out
        return out if residual is None else residual + out


class _Packed:
    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias
        self._activation, self._algorithm = activation, "tanh" if activation == "gelu" else ""

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        out: Tensor
        if residual is not None and self._activation == "none":
            out = product.binary(states, residual, self._weight, self._bias, "add")
            return out
        out = product(states, self._weight, self._bias, self._activation, [], self._algorithm)
        return out if residual is None else residual + out


class _Int8:
    """Weights as int8 with a scale for each output; inputs are rounded to int8 with a scale for
    each row, so that a row never depends on its company (dynamic quantization, absolute
    maximum)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        if weight.device.type != "cpu" or not torch.cpu._is_vnni_supported():
            raise ValueError(
                "quantize: int8 needs a CPU that multiplies bytes (VNNI); leave it out here"
            )
        scale, rounded = _to_int8(weight.float())
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, [_ROWS, weight.shape[1]])
        self._scale, self._zero = scale.flatten(), torch.zeros(len(weight), dtype=torch.int32)
        self._bias, self._gelu = bias, activation == "gelu"

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        rows = states.flatten(0, -2)
        scale, rounded = _to_int8(rows)
        # Inputs go as unsigned bytes: without AMX, oneDNN has nothing but a reference loop for two
        # signed factors.
        shifted = rounded.view(torch.uint8).bitwise_xor_(_SIGN)
        out = torch.ops.onednn.qlinear_pointwise(
            shifted,
            1.0,
            _SIGN,
            self._weight,
            self._scale,
            self._zero,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        ).mul_(scale)
        if self._bias is not None:
            out += self._bias
        if self._gelu:
            out = F.gelu(out, approximate="tanh")
        out = out.to(states.dtype).unflatten(0, states.shape[:-1])
        return out if residual is None else residual + out


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (rows, 1), float32, and the rows divided by them as int8."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp_(min=1e-8).div_(127)
    return scale, (rows / scale).round_().to(torch.int8)


def _packs_bfloat16() -> bool:
    """Whether oneDNN can multiply bfloat16 here; elsewhere a plain layer does."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
