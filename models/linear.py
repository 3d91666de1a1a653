"""Linear layers in the form that this machine multiplies fastest.

On a CPU that is the form of :mod:`models.cpu`, if its kernels can be compiled. Otherwise torch
multiplies: oneDNN reorders a plain bfloat16 weight at every call, so here it is reordered once,
when the model is loaded. docs/performance.md has the measurements of each form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.cpu.linear import native_linear

Quantize = Literal["int8", "int4"]
_LAYOUT_ROWS = 8
"""Rows that a packed weight's layout is chosen for: those of a decode step. Larger batches run as
fast with it."""

_ZERO_POINT = 128
"""Zero point of the unsigned byte that results from inverting a signed byte's sign bit."""


class Linear(Protocol):
    """A linear layer in any form."""

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (…, inputs) to (…, outputs), and add ``residual``, if given.

        ``residual`` may be overwritten.
        """
        ...


@dataclass(frozen=True)
class WeightPacker:
    """Moves weights to their device and packs them into the form that is used there.

    It takes one layer at a time, so that a device never holds all weights twice.
    """

    device: str = "cpu"
    quantize: Quantize | None = None
    free_modules: bool = False
    """Whether modules lose their own weights once these are packed."""
    uses_native: bool = True
    """Whether to use the kernels of :mod:`models.cpu` if there are any."""

    def to_device(self, weight: Tensor) -> Tensor:
        """Return the weight on the device, without its gradient."""
        return weight.detach().to(self.device)

    def pack_layers(
        self, *layers: nn.Linear, activation: str = "none", allows_int4: bool = False
    ) -> Linear:
        """Return one layer for several that read the same input, their outputs concatenated.

        ``activation`` is ``none``, or ``gelu`` for its tanh approximation. Without ``allows_int4``,
        ``int4`` rounds to 8 bits: only a text model's layers are read so often that 4 bits make a
        difference. Raises ``ValueError`` if this machine doesn't support ``quantize``.
        """
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers))
        bias = _concatenate(biases) if biases else None
        packed = self.pack_weight(_concatenate(weights), bias, activation, allows_int4)
        if self.free_modules:
            for layer in layers:
                layer.weight = nn.Parameter(layer.weight.new_empty(0), requires_grad=False)
        return packed

    def pack_weight(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        allows_int4: bool = False,
    ) -> Linear:
        """Return a layer of a weight (outputs, inputs) and a bias (outputs,)."""
        weight = self.to_device(weight)
        bias = None if bias is None else self.to_device(bias)
        quantize = "int8" if self.quantize and not allows_int4 else self.quantize
        if self.uses_native and not self._prefers_onednn(weight):
            native = native_linear(weight, bias, activation, quantize)
            if native is not None:
                return native
        if self.quantize == "int4":
            raise ValueError("quantize: int4 needs a CPU and a C compiler, such as gcc")
        if self.quantize == "int8":
            return _Int8Linear(weight, bias, activation)
        is_bfloat16_on_cpu = weight.device.type == "cpu" and weight.dtype is torch.bfloat16
        if is_bfloat16_on_cpu and _has_bfloat16_products():
            return _ReorderedLinear(weight, bias, activation)
        return _PlainLinear(weight, bias, activation)

    def _prefers_onednn(self, weight: Tensor) -> bool:
        """Whether oneDNN is chosen: it multiplies bfloat16 and int8 by tiles (AMX), which makes it
        several times as fast at reading prompts and pictures."""
        is_half = weight.dtype is torch.bfloat16
        in_tiles = self.quantize == "int8" or (self.quantize is None and is_half)
        return in_tiles and torch.cpu._is_amx_tile_supported()


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


class _PlainLinear(Linear):
    """A weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight = weight
        self._bias = bias
        self._gelu = activation == "gelu"

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is not None and states.is_cuda and self._bias is None and not self._gelu:
            # The product's own kernel adds the residual.
            residual.flatten(0, -2).addmm_(states.flatten(0, -2), self._weight.T)
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


class _ReorderedLinear(Linear):
    """A weight in oneDNN's own layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _LAYOUT_ROWS)
        self._bias = bias
        self._activation = activation
        self._algorithm = "tanh" if activation == "gelu" else ""

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        out: Tensor
        if residual is not None and self._activation == "none":
            out = product.binary(states, residual, self._weight, self._bias, "add")
            return out
        out = product(states, self._weight, self._bias, self._activation, [], self._algorithm)
        return out if residual is None else residual + out


class _Int8Linear(Linear):
    """Weights as int8 with a scale for each output, and inputs rounded to int8 with a scale for
    each row (dynamic quantization by the absolute maximum).

    With a scale for each row, a row's result doesn't depend on the other rows of the batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        if weight.device.type != "cpu" or not torch.cpu._is_vnni_supported():
            raise ValueError("quantize: int8 needs a CPU with VNNI instructions, or a C compiler")
        scale, rounded = _to_int8(weight.float())
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, [_LAYOUT_ROWS, weight.shape[1]])
        self._scale = scale.flatten()
        self._zero_points = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = bias
        self._gelu = activation == "gelu"

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        rows = states.flatten(0, -2)
        scale, rounded = _to_int8(rows)
        # Inputs are passed as unsigned bytes: without AMX, oneDNN multiplies two signed factors
        # only by a slow reference loop.
        shifted = rounded.view(torch.uint8).bitwise_xor_(_ZERO_POINT)
        out = torch.ops.onednn.qlinear_pointwise(
            shifted,
            1.0,
            _ZERO_POINT,
            self._weight,
            self._scale,
            self._zero_points,
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
    """Return scales, float32 (rows, 1), and the rows divided by them as int8."""
    scale = rows.abs().amax(-1, keepdim=True).float().clamp_(min=1e-8).div_(127)
    return scale, (rows / scale).round_().to(torch.int8)


def _has_bfloat16_products() -> bool:
    """Whether oneDNN can multiply bfloat16 on this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
