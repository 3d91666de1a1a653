"""Memory of weights in the layouts that the C kernels read. docs/cpu.md describes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.cpu.library import FORM_BF16, FORM_F32, FORM_INT4, FORM_INT8, INPUT_STEP, LANES
from models.cpu.memory import WeightMemory

GROUP = 32
"""Inputs that share a scale in 4 bits. 64 would take 6% less memory, and round more coarsely."""
_BITS = {FORM_F32: 32, FORM_BF16: 16, FORM_INT8: 8, FORM_INT4: 4}
_memory = WeightMemory()


@dataclass(frozen=True)
class PackedWeight:
    """A weight (outputs, inputs) in panels of 16 outputs, padded with zeros to whole panels and to
    a multiple of 64 inputs."""

    form: int
    outputs: int
    inputs: int
    values: Tensor
    scales: Tensor | None = None
    """int8: float32 (padded outputs,). int4: bfloat16 (panels, groups, 16)."""
    sums: Tensor | None = None
    """int8: the sums of the outputs' weights, int32 (padded outputs,)."""
    group: int = 0
    """int4: inputs that share a scale, 32 or 64."""


def empty_weight(weight: Tensor, quantize: str | None, group: int = GROUP) -> PackedWeight:
    """Return memory for a weight (outputs, inputs), float32 or bfloat16, as ``quantize`` has it."""
    outputs, inputs = weight.shape
    padded_outputs = -(-outputs // LANES) * LANES
    padded_inputs = -(-inputs // INPUT_STEP) * INPUT_STEP
    unquantized = FORM_BF16 if weight.dtype is torch.bfloat16 else FORM_F32
    form = {None: unquantized, "int8": FORM_INT8, "int4": FORM_INT4}[quantize]
    values = _memory.empty(padded_outputs * padded_inputs * _BITS[form] // 8, torch.uint8)
    if form == FORM_INT8:
        scales = _memory.empty(padded_outputs, torch.float32)
        sums = _memory.empty(padded_outputs, torch.int32)
        return PackedWeight(form, outputs, inputs, values, scales, sums)
    if form == FORM_INT4:
        scales = _memory.empty(padded_outputs * padded_inputs // group, torch.bfloat16)
        return PackedWeight(form, outputs, inputs, values, scales, group=group)
    return PackedWeight(form, outputs, inputs, values)
