"""Limits on the memory and time that an engine takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 2**20
CPU_PREFILL_TOKENS = 128
GPU_PREFILL_TOKENS = 4096
"""Enough to keep a data-center GPU busy. Prefilling this many tokens delays running sequences by
some tens of milliseconds."""


@dataclass(frozen=True)
class EngineLimits:
    """Size of the batch, bytes of each cache, and length of a step.

    ``with_device_defaults`` fills in the fields that are None.
    """

    max_batch_size: int = 8
    kv_bytes: int = 1024 * MIB
    feature_bytes: int = 128 * MIB
    prefix_bytes: int = 256 * MIB
    prefill_tokens: int | None = None
    """Number of prompt tokens that are prefilled at a time."""
    prefill_batch: int | None = None
    """Maximum number of prompts that are prefilled together, if they fit in ``prefill_tokens``.
    On a CPU, prefilling one after another is as fast, and the first answer starts sooner."""
    max_prefill_slice_s: float = 0.03
    """Seconds after which no further prefill slice starts before the next decode step. At least one
    slice always runs. With ``look_ahead``, exactly one runs."""
    look_ahead: bool | None = None
    """Whether a decode step is launched before the tokens of the previous one reach the host, so
    that a GPU never waits for the host. An answer that ends with a stop token or stop string is
    then decoded once more than necessary: one row of one step."""

    def with_device_defaults(self, device: str) -> EngineLimits:
        """Return a copy in which the device's defaults replace None."""
        is_gpu = device.startswith("cuda")
        prefill_tokens = self.prefill_tokens
        if prefill_tokens is None:
            prefill_tokens = GPU_PREFILL_TOKENS if is_gpu else CPU_PREFILL_TOKENS
        prefill_batch = self.prefill_batch
        if prefill_batch is None:
            prefill_batch = self.max_batch_size if is_gpu else 1
        look_ahead = is_gpu if self.look_ahead is None else self.look_ahead
        return replace(
            self,
            prefill_tokens=prefill_tokens,
            prefill_batch=prefill_batch,
            look_ahead=look_ahead,
        )
