"""What malloc keeps of freed memory, given back to the system."""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def malloc_trim() -> None:
    """Takes some milliseconds; does nothing where the C library isn't glibc.

    Tensors of ever new sizes leave holes in its heap, which under load would grow by megabytes a
    minute.
    """
    if _TRIM is not None:
        _TRIM(0)
