"""Small operations of a layer as one Triton kernel each. torch's CUDA builds include Triton.

Between the matrix products of a decode step lie a dozen small operations. Launching each takes
longer than running it.
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
except ImportError:  # a CPU build
    triton = None

logger = logging.getLogger(__name__)

_HEADS = 8
"""Heads of a token that one program rotates."""
_BLOCK = 1024
"""Values of a row that one program computes."""


@cache
def has_fused_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether these kernels run here: in half precision, on CUDA.

    They are compiled at their first call, which needs a C compiler.
    """
    if triton is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        states = torch.ones(1, 2, 8, dtype=dtype, device=device)
        apply_rope_(states, torch.ones(1, 4, device=device), torch.ones(1, 4, device=device), 1)
        silu_and_mul(torch.ones(1, 8, dtype=dtype, device=device))
        torch.cuda.synchronize()
    except Exception as error:  # a missing toolchain raises errors of many types
        logger.warning("Triton kernels are not available; using plain operations: %s", error)
        return False
    return True


def apply_rope_(states: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Apply rotary positions (Su et al. 2021) to the first ``heads`` heads, in place.

    ``states`` is contiguous (tokens, all heads, head_dim); a rotated pair has one value in each
    half of a head. ``cos`` and ``sin`` are float32 (tokens, head_dim / 2). Returns ``states``.
    """
    tokens, all_heads, size = states.shape
    half = size // 2
    grid = (tokens, triton.cdiv(heads, _HEADS))
    _apply_rope_kernel[grid](
        states, cos, sin, all_heads * size, heads, half, _HEADS, triton.next_power_of_2(half)
    )
    return states


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) · up`` (rows, width) of contiguous (rows, 2 · width), the gates first."""
    rows, columns = gate_up.shape
    width = columns // 2
    out = gate_up.new_empty(rows, width)
    _silu_and_mul_kernel[(rows, triton.cdiv(width, _BLOCK))](gate_up, out, width, _BLOCK)
    return out


def _jit(kernel: Any) -> Any:
    return kernel if triton is None else triton.jit(kernel)


@_jit
def _apply_rope_kernel(  # type: ignore[no-untyped-def]
    states, cos, sin, stride, heads, half, HEADS: tl.constexpr, HALF: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    mask = (head < heads) & (column < half)
    first = states + token * stride + head * 2 * half + column
    angle = token * half + column
    a = tl.load(first, mask).to(tl.float32)
    b = tl.load(first + half, mask).to(tl.float32)
    c = tl.load(cos + angle, column < half)
    s = tl.load(sin + angle, column < half)
    tl.store(first, (a * c - b * s).to(states.dtype.element_ty), mask)
    tl.store(first + half, (b * c + a * s).to(states.dtype.element_ty), mask)


@_jit
def _silu_and_mul_kernel(gate_up, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask).to(tl.float32)
    tl.store(
        out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask
    )
