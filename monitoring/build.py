"""Writes the files that follow from others: ``python -m monitoring.build``.

- ``grafana/dashboards/raylens.json``: the panels of :mod:`monitoring.panels`
- ``prometheusrule.yaml``: ``alerts.yml``, as an object of Kubernetes
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from monitoring.panels import ROWS, Panel

FOLDER = Path(__file__).parent
DASHBOARD = FOLDER / "grafana" / "dashboards" / "raylens.json"
RULE_OBJECT = FOLDER / "prometheusrule.yaml"
ALERTS = FOLDER / "alerts.yml"

COLUMNS = 24
"""Width of Grafana's grid."""
WIDTH = 8
HEIGHT = 7
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RULE_HEADER = """\
# For the Prometheus operator: alerts.yml, from which `python -m monitoring.build` writes this file.
"""


def build_dashboard() -> dict[str, Any]:
    return {
        "uid": "raylens",
        "title": "raylens",
        "tags": ["raylens", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one crosshair in all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": list(_panels()),
    }


def _variables() -> list[dict[str, Any]]:
    datasource = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    return [
        datasource,
        _label_variable("cluster", "ray_serve_application_status", "ray_io_cluster"),
        _label_variable("model", "ray_raylens_engine_load", "model"),
    ]


def _label_variable(name: str, metric: str, label: str) -> dict[str, Any]:
    """Return a choice of the values of a label. By default, series without it are chosen, too."""
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({metric}, {label})", "refId": name},
        "refresh": 2,  # with the range of time
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    ids = count(1)
    y = 0
    for row in ROWS:
        position = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {
            "id": next(ids),
            "type": "row",
            "title": row.question,
            "gridPos": position,
            "collapsed": False,
            "panels": [],
        }
        y += 1
        for index, panel in enumerate(row.panels):
            line, column = divmod(index, COLUMNS // WIDTH)
            x = WIDTH * column
            position = {"x": x, "y": y + HEIGHT * line, "w": WIDTH, "h": HEIGHT}
            yield {"id": next(ids), "gridPos": position, **_panel(panel)}
        y += HEIGHT * -(-len(row.panels) * WIDTH // COLUMNS)


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": "state-timeline" if panel.names else "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
        "fieldConfig": {"defaults": _field_defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _field_defaults(panel: Panel) -> dict[str, Any]:
    if panel.names:
        return {"unit": panel.unit, "mappings": [_value_names(panel.names)]}
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    return {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": {
            "fillOpacity": 30 if panel.is_stacked else 0,
            "stacking": {"mode": "normal" if panel.is_stacked else "none"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"},
            "showPoints": "never",
        },
    }


def _value_names(names: tuple[str, ...]) -> dict[str, Any]:
    """Return a mapping of values to names. The last one is good, and the others aren't."""
    colors = ["red"] * min(3, len(names) - 1) + ["yellow"] * (len(names) - 4) + ["green"]
    return {
        "type": "value",
        "options": {
            str(value): {"text": name, "color": color, "index": value}
            for value, (name, color) in enumerate(zip(names, colors, strict=True))
        },
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.names:
        return {"showValue": "auto", "mergeValues": True, "legend": {"showLegend": False}}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def build_rule_object() -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "raylens", "release": "kube-prometheus-stack"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "raylens", "labels": labels},
        "spec": yaml.safe_load(ALERTS.read_text()),
    }


def render() -> dict[Path, str]:
    """Return the text of each file."""
    rule_object = yaml.safe_dump(build_rule_object(), sort_keys=False, width=60)
    return {
        DASHBOARD: json.dumps(build_dashboard(), indent=1, ensure_ascii=False) + "\n",
        RULE_OBJECT: RULE_HEADER + rule_object,
    }


def main() -> None:
    for path, text in render().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
