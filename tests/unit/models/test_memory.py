from __future__ import annotations

import pytest
import torch

from models import memory
from models.memory import (
    CONTEXT_BYTES,
    CPU_KV_BYTES,
    WORKING_SHARE,
    choose_kv_bytes,
    kv_cache_bytes,
    limit_gpu_memory,
    remaining_bytes,
    report_oversized_weights,
    share_bytes,
)

GIB = 2**30


def test_a_cpu_has_a_constant_budget_and_no_limit() -> None:
    limit_gpu_memory("cpu", 0.25)
    assert kv_cache_bytes("cpu", 0, 0) == CPU_KV_BYTES


def test_a_share_includes_the_cuda_context() -> None:
    shares = [share_bytes(80 * GIB, 0.25) + CONTEXT_BYTES for _ in range(4)]
    assert sum(shares) == 80 * GIB
    assert share_bytes(80 * GIB, 0) == 80 * GIB - CONTEXT_BYTES


def test_the_kv_cache_gets_what_weights_and_caches_leave() -> None:
    remaining = remaining_bytes(20 * GIB, 5 * GIB, GIB)
    assert remaining + 6 * GIB == int(20 * GIB * (1 - WORKING_SHARE))


def test_a_configured_size_is_taken_if_it_fits() -> None:
    assert kv_cache_bytes("cpu", 0, 0, 5) == 5
    assert choose_kv_bytes(10, None) == 10
    assert choose_kv_bytes(10, 9) == 9
    with pytest.raises(
        MemoryError, match=r"kv_cache: 10\.0 GiB; the limit is 4\.0 GiB, .* this replica's share"
    ):
        choose_kv_bytes(4 * GIB, 10 * GIB)


def test_a_share_that_is_too_small_is_reported() -> None:
    with pytest.raises(
        MemoryError, match=r"this replica's share .* is 8\.0 GiB; the weights \(9\.0 GiB\).*nothing"
    ):
        remaining_bytes(8 * GIB, 9 * GIB, 0)


def test_weights_that_do_not_fit_are_reported_with_the_size_of_the_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_gpu_bytes", lambda: 80 * GIB)
    with (
        pytest.raises(MemoryError, match=r"don't fit into 7\.0 GiB, .* \(num_gpus: 0\.1\)"),
        report_oversized_weights("cuda", 0.1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 130.00 MiB.")
