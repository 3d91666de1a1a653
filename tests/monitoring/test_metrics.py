"""Alerts and panels ask for metrics and labels that exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.build import ALERTS
from monitoring.panels import ROWS
from raylens.status.metrics import METRICS
from tests.monitoring.exported import (
    OF_ALL,
    Labels,
    modules_with_metrics,
    our_metrics,
    rays_metrics,
)
from tests.monitoring.expressions import Expression

ROOT = Path(__file__).parents[2]
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for row in ROWS for panel in row.panels]
QUERIES = [
    (f"{panel.title}: {legend}", legend, Expression(query))
    for panel in PANELS
    for legend, query in panel.queries.items()
]
EXPRESSIONS = {
    **{rule["alert"]: Expression(rule["expr"]) for rule in RULES},
    **{name: expression for name, _, expression in QUERIES},
}


@pytest.fixture(scope="module")
def exported() -> dict[str, Labels | None]:
    return {**rays_metrics(), **our_metrics(), "up": frozenset()}


def allowed_labels(exported: Mapping[str, Labels | None], metrics: set[str]) -> Labels | None:
    """Return the labels that some of the metrics have; None if the code of one doesn't tell."""
    labels: set[str] = {"le"} if any(metric.endswith("_bucket") for metric in metrics) else set()
    for metric in metrics:
        own = exported[metric]
        if own is None:
            return None
        labels |= own
    return OF_ALL | labels


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_exists(exported: dict[str, Labels | None], name: str) -> None:
    metrics = EXPRESSIONS[name].metrics
    assert metrics
    assert metrics <= exported.keys()


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_label_is_one_of_its_metric(exported: dict[str, Labels | None], name: str) -> None:
    expression = EXPRESSIONS[name]
    for metric, labels in expression.selectors:
        allowed = allowed_labels(exported, {metric})
        assert allowed is None or labels <= allowed
    allowed = allowed_labels(exported, expression.metrics)
    for grouping in expression.groupings:
        assert allowed is None or grouping <= allowed


@pytest.mark.parametrize(("name", "legend", "expression"), QUERIES, ids=[q[0] for q in QUERIES])
def test_a_legend_names_labels_that_the_query_keeps(
    exported: dict[str, Labels | None], name: str, legend: str, expression: Expression
) -> None:
    labels = set(re.findall(r"\{\{(\w+)\}\}", legend))
    if not expression.groupings:
        allowed = allowed_labels(exported, expression.metrics)
        assert allowed is not None
        assert labels <= allowed
    for grouping in expression.groupings:
        assert labels <= grouping
    if expression.groupings:
        assert expression.groupings[0] - {"le", "unit"} == labels - {"unit"}, (
            "two series would have the same legend"
        )


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_the_texts_of_an_alert_name_labels_that_it_has(
    exported: dict[str, Labels | None], rule: dict[str, Any]
) -> None:
    expression = Expression(rule["expr"])
    texts = " ".join(rule["annotations"].values())
    labels = set(re.findall(r"\$labels\.(\w+)", texts))
    is_aggregate = re.match(r"(sum|max) by|histogram_quantile", rule["expr"])
    first_metric = expression.selectors[0][0]  # the left side of an operator gives the labels
    allowed = allowed_labels(exported, {first_metric})
    kept = expression.groupings[0] if is_aggregate else allowed
    assert kept is not None
    assert labels <= kept


def test_the_status_reads_metrics_and_labels_that_exist(
    exported: Mapping[str, Labels | None],
) -> None:
    for name, metric in METRICS.items():
        assert name in exported
        labels = exported[name]
        assert labels is None or set(metric.by) - {"le"} <= labels, name


def test_all_metrics_of_raylens_are_gathered() -> None:
    modules = {
        "engine_metrics",
        "job_metrics",
        "request_metrics",
        "preprocessor",
        "session_metrics",
    }
    assert modules_with_metrics(ROOT / "deployments") == modules
    assert len(our_metrics()) > 40


def test_the_dashboard_shows_every_metric_of_raylens() -> None:
    shown = set().union(*(expression.metrics for _, _, expression in QUERIES))
    families = {_family(name) for name in our_metrics()}
    # Time to first token as the engine sees it is queue plus prefill; requests have tokens by key.
    not_shown = {"ray_raylens_engine_time_to_first_token_seconds", "ray_raylens_http_tokens_total"}
    assert families - {_family(name) for name in shown} == not_shown


def _family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_a_metric_that_does_not_exist_would_be_found(exported: dict[str, Labels | None]) -> None:
    expression = Expression('sum by (model) (rate(ray_raylens_http_request_total{x="1"}[5m]))')
    assert expression.selectors == [("ray_raylens_http_request_total", {"x"})]
    assert expression.groupings == [{"model"}]
    assert not expression.metrics <= exported.keys()
