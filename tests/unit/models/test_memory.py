from __future__ import annotations

import pytest
import torch

from models import memory
from models.memory import (
    CONTEXT_BYTES,
    CPU_KV_BYTES,
    WORKING_SHARE,
    hold_to_share,
    kv_budget,
    left_of,
    loading,
    share_bytes,
    within,
)

GIB = 2**30


def test_a_cpu_has_a_budget_of_its_own_and_nothing_to_hold() -> None:
    hold_to_share("cpu", 0.25)
    assert kv_budget("cpu", 0, 0) == CPU_KV_BYTES


def test_a_share_holds_cudas_own_memory_too() -> None:
    shares = [share_bytes(80 * GIB, 0.25) + CONTEXT_BYTES for _ in range(4)]
    assert sum(shares) == 80 * GIB
    assert share_bytes(80 * GIB, 0) == 80 * GIB - CONTEXT_BYTES


def test_keys_and_values_get_what_is_left() -> None:
    left = left_of(20 * GIB, 5 * GIB, GIB)
    assert left + 6 * GIB == int(20 * GIB * (1 - WORKING_SHARE))


def test_what_is_configured_holds_where_it_fits() -> None:
    assert (kv_budget("cpu", 0, 0, 5), within(10, None), within(10, 9)) == (5, 10, 9)
    with pytest.raises(
        MemoryError, match=r"kv_cache: 10\.0 GiB; .* leave 4\.0 GiB of this replica's share"
    ):
        within(4 * GIB, 10 * GIB)


def test_a_share_that_is_too_small_is_named() -> None:
    with pytest.raises(
        MemoryError, match=r"weights \(9\.0 GiB\).* leave nothing of 8\.0 GiB, this replica's share"
    ):
        left_of(8 * GIB, 9 * GIB, 0)


def test_weights_that_do_not_fit_are_told_in_the_share_s_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_card_bytes", lambda: 80 * GIB)
    with (
        pytest.raises(MemoryError, match=r"don't fit into 7\.0 GiB, .* \(num_gpus: 0\.1\)"),
        loading("cuda", 0.1),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 130.00 MiB.")
