"""What an engine may take of the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 2**20
CPU_PREFILL_TOKENS = 128
GPU_PREFILL_TOKENS = 4096
"""Enough to keep a data center's GPU busy; a running answer waits some tens of milliseconds for so
many."""


@dataclass(frozen=True)
class EngineLimits:
    """Sequences, bytes of each cache, and how long a step may be. What is None is set by the
    device."""

    max_batch_size: int = 8
    kv_bytes: int = 1024 * MIB
    feature_bytes: int = 128 * MIB
    prefix_bytes: int = 256 * MIB
    prefill_tokens: int | None = None
    """Tokens of prompts that are read at a time."""
    prefill_batch: int | None = None
    """Prompts that are read together, as far as they fit into ``prefill_tokens``. On a CPU one
    after another is as fast, and the first has its answer sooner."""
    max_prefill_slice_s: float = 0.03
    """Slices are done one after another for so long before running sequences go on; one is always
    done. If the engine looks ahead, it is one at a time."""
    look_ahead: bool | None = None
    """Launches a decode step before the host knows the tokens of the one before it, so that a GPU
    never waits for the host. An answer that ends by a token costs one row of one step more."""

    def on(self, device: str) -> EngineLimits:
        """With what the device sets."""
        gpu = device.startswith("cuda")
        tokens = GPU_PREFILL_TOKENS if gpu else CPU_PREFILL_TOKENS
        return replace(
            self,
            prefill_tokens=tokens if self.prefill_tokens is None else self.prefill_tokens,
            prefill_batch=(self.max_batch_size if gpu else 1)
            if self.prefill_batch is None
            else self.prefill_batch,
            look_ahead=gpu if self.look_ahead is None else self.look_ahead,
        )
