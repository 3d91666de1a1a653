"""What an engine may take of the machine."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Sequences, bytes of each cache, and how long a step may be."""

    max_batch_size: int = 8
    kv_bytes: int = 1024 * MIB
    feature_bytes: int = 128 * MIB
    prefix_bytes: int = 256 * MIB
    prefill_tokens: int = 128
    """Tokens of a prompt that are read at a time."""
    stall_s: float = 0.03
    """Slices are done one after another for so long before running sequences go on; one is always done."""
