"""Returning freed memory from malloc to the operating system."""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def malloc_trim() -> None:
    """Return freed heap memory to the operating system, which takes some milliseconds.

    Tensors of ever new sizes leave holes in glibc's heap, which under load grows by megabytes a
    minute without this. With another C library than glibc, does nothing.
    """
    if _TRIM is not None:
        _TRIM(0)
