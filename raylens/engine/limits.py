"""Limits on an engine's memory, and how prefill is divided among steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 2**20
CPU_PREFILL_TOKENS = 128
GPU_PREFILL_TOKENS = 4096
"""Enough to keep a data-center GPU busy. Prefilling this many tokens delays running sequences by a
few tens of milliseconds."""
CPU_DELTAS_PER_S = 50.0
"""Streams take CPU time from the model: at 8 answers in flight on 2 cores, 50 deltas a second
cost up to a seventh of the captions, and one for each token up to a third."""
GPU_DELTAS_PER_S = 200.0
"""About half of what one ingress passes on."""


@dataclass(frozen=True)
class EngineLimits:
    """Size of the batch, bytes of each cache, and how prefill is divided among steps.

    ``with_device_defaults`` fills in the fields that are None.
    """

    max_batch_size: int = 8
    kv_bytes: int = 1024 * MIB
    feature_bytes: int = 128 * MIB
    prefix_bytes: int = 256 * MIB
    max_prefill_tokens: int | None = None
    """Maximum number of tokens in a prefill chunk, and in total for prompts that are prefilled
    together. A bidirectional prefix may exceed it; its chunk is then split between layers."""
    max_prefill_batch_size: int | None = None
    """Maximum number of prompts that are prefilled together. On a CPU, prefilling one after another
    is as fast, and the first answer starts sooner."""
    max_prefill_slice_s: float = 0.03
    """Time budget for all slices of prefill between two decode steps, in seconds. Once it is used
    up, no further slice starts, but at least one slice always runs (two if few sequences are
    running). With ``async_scheduling``, exactly one runs."""
    max_deltas_per_s: float | None = None
    """Deltas that all streams together send per second. Tokens that come sooner are sent together;
    each stream gets at least five deltas a second."""
    async_scheduling: bool | None = None
    """Whether a decode step is launched before the previous step's tokens reach the host, so that
    the GPU rarely waits for the host (it still does for grammars, and for policies that read token
    ids). An answer that ends with a stop token or stop string then wastes its row in one decode
    step, or in two if its first token ends it."""

    def with_device_defaults(self, device: str) -> EngineLimits:
        """Return a copy in which the device's defaults replace None."""
        is_gpu = device.startswith("cuda")
        max_prefill_tokens = self.max_prefill_tokens
        if max_prefill_tokens is None:
            max_prefill_tokens = GPU_PREFILL_TOKENS if is_gpu else CPU_PREFILL_TOKENS
        max_prefill_batch_size = self.max_prefill_batch_size
        if max_prefill_batch_size is None:
            max_prefill_batch_size = self.max_batch_size if is_gpu else 1
        max_deltas_per_s = self.max_deltas_per_s
        if max_deltas_per_s is None:
            max_deltas_per_s = GPU_DELTAS_PER_S if is_gpu else CPU_DELTAS_PER_S
        async_scheduling = is_gpu if self.async_scheduling is None else self.async_scheduling
        return replace(
            self,
            max_prefill_tokens=max_prefill_tokens,
            max_prefill_batch_size=max_prefill_batch_size,
            max_deltas_per_s=max_deltas_per_s,
            async_scheduling=async_scheduling,
        )
