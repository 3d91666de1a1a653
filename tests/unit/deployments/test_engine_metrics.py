"""The engine's metrics as Serve receives them."""

from __future__ import annotations

from typing import Any

import pytest
from ray.util.metrics import Metric

from deployments.engine_metrics import PrometheusEngineMetrics
from raylens.core.types import MemoryUsage
from raylens.engine.metrics import Gauges


class FakeGauge:
    """Keeps the latest value of each set of tags."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, tags: dict[str, str] | None = None) -> None:
        self.values[tuple((tags or {}).values())] = value


@pytest.fixture
def metrics() -> Any:
    """Metrics whose gauges are fakes."""
    metrics = PrometheusEngineMetrics("moondream")
    for name, metric in vars(metrics).items():
        if isinstance(metric, Metric) and hasattr(metric, "set"):
            setattr(metrics, name, FakeGauge())
    return metrics


def test_a_replica_without_a_kv_cache_reports_no_limit_of_it(metrics: Any) -> None:
    metrics.set_gauges(Gauges(max_waiting=48))
    assert metrics._max_waiting.values == {(): 48}
    assert metrics._max_kv_bytes.values == {}
    metrics.set_gauges(Gauges(max_kv_bytes=1000))
    assert metrics._max_kv_bytes.values == {(): 1000}


def test_the_memory_of_a_replica_is_measured_by_kind(metrics: Any) -> None:
    metrics.set_memory(MemoryUsage("cuda", "GPU-1", 80, 20, 25, share=24))
    assert metrics._memory.values == {
        ("allocated", "cuda", "GPU-1"): 20,
        ("reserved", "cuda", "GPU-1"): 25,
        ("total", "cuda", "GPU-1"): 80,
        ("share", "cuda", "GPU-1"): 24,
    }


def test_a_replica_on_a_cpu_has_no_share(metrics: Any) -> None:
    metrics.set_memory(MemoryUsage("cpu", "node", 80, 20, 25))
    assert ("share", "cpu", "node") not in metrics._memory.values
