"""Small operations of a layer as one kernel each, by Triton, which comes with torch's builds for
CUDA.

Between the products of a decode step lie a dozen operations that each take longer to start than to
do.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build for CPUs
    triton = None

logger = logging.getLogger(__name__)

_HEADS = 8
"""Heads of a token that one program turns."""
_BLOCK = 1024


@cache
def has_fused_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these kernels run here; they are compiled when they are first called, which needs a C
    compiler."""
    if triton is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        states = torch.ones(1, 2, 8, dtype=dtype, device=device)
        apply_rope_(states, torch.ones(1, 4, device=device), torch.ones(1, 4, device=device), 1)
        silu_and_mul(torch.ones(1, 8, dtype=dtype, device=device))
        torch.cuda.synchronize()
    except Exception as error:  # whatever a toolchain that isn't there raises
        logger.warning(
            "Triton's kernels don't run here, and plain operations take their place: %s", error
        )
        return False
    return True


def apply_rope_(states: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary positions (Su et al. 2021) of the first ``heads`` of contiguous (tokens, all heads,
    head size), whose halves are the pairs that turn; ``cos`` and ``sin``, float32 (tokens, head
    size / 2). Returns ``states``."""
    tokens, every, size = states.shape
    grid = (tokens, triton.cdiv(heads, _HEADS))
    _apply_rope_kernel[grid](
        states, cos, sin, every * size, heads, size // 2, _HEADS, triton.next_power_of_2(size // 2)
    )
    return states


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) · up`` of contiguous (rows, 2 · width), the gates first: (rows, width)."""
    rows, both = gate_up.shape
    out = gate_up.new_empty(rows, both // 2)
    _silu_and_mul[(rows, triton.cdiv(both // 2, _BLOCK))](gate_up, out, both // 2, _BLOCK)
    return out


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


@_jit
def _apply_rope_kernel(  # type: ignore[no-untyped-def]
    states, cos, sin, stride, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (place < half)
    first = states + token * stride + head * 2 * half + place
    turned = token * half + place
    a = tl.load(first, inside).to(tl.float32)
    b = tl.load(first + half, inside).to(tl.float32)
    c = tl.load(cos + turned, place < half)
    s = tl.load(sin + turned, place < half)
    tl.store(first, (a * c - b * s).to(states.dtype.element_ty), inside)
    tl.store(first + half, (b * c + a * s).to(states.dtype.element_ty), inside)


@_jit
def _silu_and_mul(gate_up, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    gate = tl.load(gate_up + row * 2 * width + place, inside).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + place, inside).to(tl.float32)
    tl.store(
        out + row * width + place, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), inside
    )
