"""Memory for weights, in huge pages: reading them takes fewer translations of addresses."""

from __future__ import annotations

import ctypes
import sys
from threading import Lock

import torch
from torch import Tensor

_HUGE_PAGE = 2 * 2**20
_SLAB_BYTES = 16 * _HUGE_PAGE
"""Weights smaller than a huge page share slabs of this size. Pages that no weight touches take no
memory."""
_ALIGNMENT = 64
_MADV_HUGEPAGE = 14
"""Linux's number of the advice."""
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


class WeightMemory:
    """Hands out tensors, one after another in slabs."""

    def __init__(self) -> None:
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._lock = Lock()

    def empty(self, size: int, dtype: torch.dtype) -> Tensor:
        """Return a tensor (size,) without values."""
        num_bytes = size * dtype.itemsize
        with self._lock:
            if num_bytes > len(self._slab):
                self._slab = _new_slab(max(num_bytes, _SLAB_BYTES))
            tensor = self._slab[:num_bytes].view(dtype)
            self._slab = self._slab[-(-num_bytes // _ALIGNMENT) * _ALIGNMENT :]
            return tensor


def _new_slab(num_bytes: int) -> Tensor:
    """Return new memory that begins with a huge page, if the system has them."""
    slab = torch.empty(num_bytes + _HUGE_PAGE, dtype=torch.uint8)
    slab = slab[-slab.data_ptr() % _HUGE_PAGE :][:num_bytes]
    if _madvise is not None:
        _madvise(ctypes.c_void_p(slab.data_ptr()), ctypes.c_size_t(num_bytes), _MADV_HUGEPAGE)
    return slab
