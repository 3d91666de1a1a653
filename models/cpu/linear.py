"""Linear layers with packed weights, in C."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from models.cpu.library import ACTIVATIONS, Library, LinearStruct, host_library
from models.cpu.packing import GROUP, empty_weight


class NativeLinear:
    """A :class:`models.linear.Linear` of a weight (outputs, inputs), float32 or bfloat16, rounded
    to ``quantize`` if that is given.

    Takes and returns float32 or bfloat16. A row's result doesn't depend on the other rows.
    """

    def __init__(
        self,
        library: Library,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str = "none",
        quantize: str | None = None,
        group: int = GROUP,
    ) -> None:
        self.library = library
        packed = empty_weight(weight, quantize, group)
        self._tensors = (packed, None if bias is None else bias.float().contiguous())
        self.struct = LinearStruct(
            weights=packed.values.data_ptr(),
            scales=_address(packed.scales),
            sums=_address(packed.sums),
            bias=_address(self._tensors[1]),
            form=packed.form,
            activation=ACTIVATIONS.index(activation),
            outputs=packed.outputs,
            inputs=packed.inputs,
            group=packed.group,
        )
        """What the C functions read. It points into tensors of this object."""
        weight = weight.contiguous()
        library.linear_pack(
            byref(self.struct),
            weight.data_ptr(),
            weight.dtype is torch.bfloat16,
            torch.get_num_threads(),
        )

    def __call__(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        inputs = self.struct.inputs
        if states.shape[-1] != inputs or states.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"{states.dtype} {tuple(states.shape)} for a layer of {inputs} inputs")
        states = states.contiguous()
        residual = None if residual is None else residual.to(states.dtype).contiguous()
        target = states.new_empty((*states.shape[:-1], self.struct.outputs))
        rows = states.numel() // inputs
        layer = byref(self.struct)
        scratch_bytes = self.library.linear_scratch_bytes(layer, rows)
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8)
        self.library.linear_run(
            layer,
            states.data_ptr(),
            _address(residual),
            target.data_ptr(),
            rows,
            states.dtype is torch.bfloat16,
            scratch.data_ptr(),
            torch.get_num_threads(),
        )
        return target


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def native_linear(
    weight: Tensor, bias: Tensor | None, activation: str, quantize: str | None
) -> NativeLinear | None:
    """Return a layer of a weight (outputs, inputs), rounded to ``quantize`` if that is given.

    Returns None on another device than a CPU, for another type than float32 and bfloat16, and
    without a compiled library.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    library = host_library()
    if library is None:
        return None
    return NativeLinear(library, weight, bias, activation, quantize)
