"""Weights in the layouts that the C kernels read. docs/cpu.md describes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.cpu.library import FORM_BF16, FORM_F32, FORM_INT4, FORM_INT8, INPUT_STEP, LANES
from models.cpu.memory import WeightMemory

GROUP = 32
"""Inputs that share a scale in 4 bits. 64 would take 6% less memory, and round more coarsely."""
_SLICE_OUTPUTS = 2048
"""Outputs that are packed at a time, so that memory never holds a large weight twice as floats."""
_memory = WeightMemory()


@dataclass(frozen=True)
class PackedWeight:
    """A weight in panels of 16 outputs, padded with zeros to whole panels and to a multiple of 64
    inputs."""

    form: int
    outputs: int
    inputs: int
    values: Tensor
    scales: Tensor | None = None
    """int8: float32 (padded outputs,). int4: bfloat16 (panels, groups, 16)."""
    sums: Tensor | None = None
    """int8: the sums of the outputs' weights, int32 (padded outputs,)."""
    group: int = 0
    """int4: inputs that share a scale."""


def pack_float(weight: Tensor) -> PackedWeight:
    """Pack float32 or bfloat16 (outputs, inputs) as it is."""
    is_float32 = weight.dtype is torch.float32
    step = 1 if is_float32 else 2
    (values,) = _in_slices(weight, lambda part: (_panels(part, step),))
    return PackedWeight(FORM_F32 if is_float32 else FORM_BF16, len(weight), weight.shape[1], values)


def pack_int8(weight: Tensor) -> PackedWeight:
    """Round to −127 to 127, with a scale for each output."""
    values, scales, sums = _in_slices(weight, _round_to_int8)
    return PackedWeight(FORM_INT8, len(weight), weight.shape[1], values, scales, sums)


def pack_int4(weight: Tensor, group: int = GROUP) -> PackedWeight:
    """Round to −8 to 7, with a scale for each output and ``group`` (32 or 64) inputs."""
    values, scales = _in_slices(weight, lambda part: _round_to_int4(part, group))
    return PackedWeight(FORM_INT4, len(weight), weight.shape[1], values, scales, group=group)


def _in_slices(weight: Tensor, pack: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """Pack slices of the outputs, and concatenate what results."""
    packed: list[Tensor] = []
    step = _SLICE_OUTPUTS
    padded_outputs = -(-len(weight) // LANES) * LANES
    for first in range(0, len(weight), step):
        part = weight[first : first + step]
        rows = min(step, padded_outputs - first)
        parts = pack(F.pad(part, (0, -part.shape[1] % INPUT_STEP, 0, rows - len(part))))
        if not packed:
            packed = [
                _memory.empty(padded_outputs * one.numel() // rows, one.dtype) for one in parts
            ]
        for whole, one in zip(packed, parts, strict=True):
            start = first * one.numel() // rows
            whole[start : start + one.numel()] = one.flatten()
    return packed


def _panels(weight: Tensor, step: int) -> Tensor:
    """(outputs, inputs) -> (outputs / 16, inputs / step, 16, step)."""
    return weight.unflatten(1, (-1, step)).unflatten(0, (-1, LANES)).transpose(1, 2)


def _round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    floats = weight.float()
    scales = floats.abs().amax(1).clamp_(min=1e-30) / 127
    rounded = (floats / scales[:, None]).round_().to(torch.int8)
    return _panels(rounded, 4), scales, rounded.sum(1, dtype=torch.int32)


def _round_to_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    groups = weight.float().unflatten(1, (-1, group))
    scales = _int4_scales(groups)
    rounded = (groups / scales.float()[..., None]).round_().clamp_(-8, 7).add_(8)
    eights = rounded.to(torch.uint8).flatten(1).unflatten(1, (-1, 2, 4))
    nibbles = eights[:, :, 0] | (eights[:, :, 1] << 4)
    return _panels(nibbles.flatten(1), 4), _panels(scales, 1)


def _int4_scales(groups: Tensor) -> Tensor:
    """Return the scale of each group, bfloat16 (outputs, groups).

    It maps the value that is farthest from 0 to −8: four bits have one more value on that side.
    """
    lowest, highest = groups.aminmax(dim=-1)
    farthest = torch.where(-lowest > highest, lowest, highest)
    scales = (farthest / -8).bfloat16()
    return torch.where(scales == 0, torch.ones_like(scales), scales)
