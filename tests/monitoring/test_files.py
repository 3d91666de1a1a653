"""The files of ``monitoring/``, as Prometheus and Grafana read them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from monitoring.build import ALERTS, COLUMNS, DASHBOARD, FOLDER, render
from monitoring.panels import Unit
from tests.monitoring.expressions import Expression
from tests.monitoring.promtool import needs_promtool, promtool
from tests.monitoring.test_metrics import QUERIES, RULES

ROOT = Path(__file__).parents[2]
BUILT_IN_VARIABLES = {"__rate_interval", "datasource"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text()))


@needs_promtool
def test_prometheus_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", ALERTS)


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", FOLDER / "alerts_test.yml")


def test_the_firing_of_every_alert_is_tested() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("promql_expr_test", ())]
    fired = {
        name
        for case in cases
        if case["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', case["expr"])
    }
    assert fired == {rule["alert"] for rule in RULES}


@needs_promtool
def test_prometheus_parses_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {
            "record": "dashboard:query",
            "labels": {"number": str(number)},
            "expr": expression.text.replace("$__rate_interval", "1m"),
        }
        for number, (_, _, expression) in enumerate(QUERIES)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)


@pytest.mark.parametrize("path", render(), ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text() == render()[path], "run python -m monitoring.build"


def test_the_panels_fill_the_grid_without_overlaps(dashboard: dict[str, Any]) -> None:
    cells: list[set[tuple[int, int]]] = []
    for position in (panel["gridPos"] for panel in dashboard["panels"]):
        x, y, width, height = (position[key] for key in "xywh")
        assert x + width <= COLUMNS
        cells.append({(x + i, y + j) for i in range(width) for j in range(height)})
    assert not any(one & other for one, other in combinations(cells, 2))


def test_ids_and_titles_are_unique(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        reference_ids = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(reference_ids)) == len(reference_ids)


def test_every_query_uses_the_chosen_datasource_and_known_variables(
    dashboard: dict[str, Any],
) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(targets) == len(QUERIES)
    for target in targets:
        assert target["datasource"]["uid"] == "${datasource}"
        assert Expression(target["expr"]).variables <= declared | BUILT_IN_VARIABLES
    used = set().union(*(Expression(target["expr"]).variables for target in targets))
    assert declared - used == {"datasource"}


def test_every_chart_has_a_unit_that_grafana_knows(dashboard: dict[str, Any]) -> None:
    charts = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in charts} <= set(get_args(Unit))


@pytest.mark.parametrize(
    ("unit", "pattern"),
    [
        ("s", r"_seconds|_ms"),
        ("bytes", r"_bytes"),
        ("reqps", r"rate\(ray_raylens_http_requests_total"),
        ("ops", r"rate\("),
    ],
)
def test_a_unit_is_that_of_its_metrics(dashboard: dict[str, Any], unit: str, pattern: str) -> None:
    charts = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    of_unit = [c for c in charts if c["fieldConfig"]["defaults"]["unit"] == unit]
    assert of_unit
    for target in (target for chart in of_unit for target in chart["targets"]):
        assert re.search(pattern, target["expr"])
        assert ("_ms" in target["expr"]) == ("/ 1000" in target["expr"])


def test_the_alert_about_nodes_selects_the_job_of_every_scrape_configuration() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "RaylensNodeAway"]
    assert rule["expr"] == 'up{job="ray"} == 0'
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    # Ray's file sets the label, to the same value, by itself.
    assert [each["job_name"] for each in prometheus["scrape_configs"]] == ["ray"]
    for endpoint in pod_endpoints():
        assert {"targetLabel": "job", "replacement": "ray"} in endpoint["relabelings"]


def test_all_metrics_ports_of_pods_are_scraped_with_the_name_of_their_cluster() -> None:
    assert [each["port"] for each in pod_endpoints()] == ["metrics", "as-metrics", "dash-metrics"]
    for endpoint in pod_endpoints():
        targets = {each["targetLabel"]: each for each in endpoint["relabelings"]}
        source = targets["ray_io_cluster"]["sourceLabels"]
        assert source == ["__meta_kubernetes_pod_label_ray_io_cluster"]


def pod_endpoints() -> list[dict[str, Any]]:
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    assert monitor["spec"]["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    return list(monitor["spec"]["podMetricsEndpoints"])


def test_the_provisioned_datasource_is_the_one_that_the_ray_dashboard_asks_for() -> None:
    path = FOLDER / "grafana" / "datasources" / "prometheus.yml"
    (datasource,) = yaml.safe_load(path.read_text())["datasources"]
    assert (datasource["name"], datasource["type"]) == ("Prometheus", "prometheus")


def test_the_dashboard_lies_where_its_provider_looks() -> None:
    provisioning = FOLDER / "grafana"
    path = provisioning / "dashboards" / "provider.yml"
    providers = yaml.safe_load(path.read_text())["providers"]
    (folder,) = [each["options"]["path"] for each in providers if each["name"] == "raylens"]
    assert provisioning / Path(folder).relative_to("/etc/grafana/provisioning") == DASHBOARD.parent


def test_the_documentation_says_what_to_do_for_each_alert() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = set(re.findall(r"^\| `(Raylens\w+)` \|", page, re.MULTILINE))
    assert rows == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_documentation_names_every_row_of_the_dashboard(dashboard: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert all(f"**{title}**" in page for title in rows)
