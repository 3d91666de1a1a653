"""The shapes of query, evaluated by Prometheus over series that are written down here."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from monitoring.promql import hit_rate, mean, per_second, share
from tests.monitoring.promtool import needs_promtool, promtool

REQUESTS = "ray_raylens_http_requests_total"
STEPS = "ray_raylens_engine_batch_size"
CACHE = "ray_raylens_engine_cache"


def counter(name: str, per_minute: int, **labels: str) -> tuple[str, int]:
    matchers = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{matchers}}}", per_minute


def check(
    folder: Path, query: str, series: list[tuple[str, int]], expected: dict[str, float]
) -> None:
    """Evaluate a query after ten minutes. ``expected`` maps labels to values."""
    replaced = {"$__rate_interval": "5m", "$cluster": ".*", "$model": ".*"}
    for variable, value in replaced.items():
        query = query.replace(variable, value)
    case = {
        "expr": query,
        "eval_time": "10m",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in expected.items()],
    }
    inputs = [{"series": name, "values": f"0+{growth}x10"} for name, growth in series]
    test = {"interval": "1m", "input_series": inputs, "promql_expr_test": [case]}
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", path)


@needs_promtool
def test_a_share_is_0_for_a_label_that_no_series_has(tmp_path: Path) -> None:
    series = [
        counter(REQUESTS, 3, model="a", status="503"),
        counter(REQUESTS, 9, model="a", status="200"),
        counter(REQUESTS, 6, model="b", status="200"),
        counter(REQUESTS, 0, model="idle", status="200"),
    ]
    query = share(REQUESTS, 'status="503"', "model")
    check(tmp_path, query, series, {'{model="a"}': 0.25, '{model="b"}': 0})
    check(tmp_path, share(REQUESTS, 'status="500"'), series, {"{}": 0})
    by_route = share(REQUESTS, 'status="503"', matchers='model="a"')
    check(tmp_path, by_route, series, {"{}": 0.25})


@needs_promtool
@pytest.mark.parametrize(
    ("hits", "misses", "expected"),
    [(3, 1, {'{model="m"}': 0.75}), (3, None, {'{model="m"}': 1}), (None, 3, {'{model="m"}': 0})],
)
def test_a_cache_has_a_hit_rate_though_it_had_only_hits_or_only_misses(
    tmp_path: Path, hits: int | None, misses: int | None, expected: dict[str, float]
) -> None:
    kinds = {"hits": hits, "misses": misses}
    series = [
        counter(f"{CACHE}_{kind}_total", count, model="m", cache="prefix")
        for kind, count in kinds.items()
        if count is not None
    ]
    check(tmp_path, hit_rate("prefix", 'model=~"$model"'), series, expected)


@needs_promtool
def test_a_mean_is_that_of_the_time_range_and_none_without_observations(tmp_path: Path) -> None:
    series = [
        counter(f"{STEPS}_sum", 12, model="a"),
        counter(f"{STEPS}_count", 4, model="a"),
        counter(f"{STEPS}_sum", 0, model="idle"),
        counter(f"{STEPS}_count", 0, model="idle"),
    ]
    check(tmp_path, mean(STEPS, "model"), series, {'{model="a"}': 3})


@needs_promtool
def test_series_without_the_label_of_kubernetes_are_found(tmp_path: Path) -> None:
    series = [
        counter(REQUESTS, 60, status="200"),
        counter(REQUESTS, 60, status="200", ray_io_cluster="blue"),
    ]
    check(tmp_path, per_second(REQUESTS), series, {"{}": 2})
