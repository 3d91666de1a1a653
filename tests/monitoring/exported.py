"""The metrics that raylens, Serve and Ray's nodes export, gathered from their code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.serve import metrics as serve_metrics
from ray.util.metrics import Counter, Gauge, Histogram, Metric

from deployments.engine_metrics import PrometheusEngineMetrics
from deployments.job_metrics import PrometheusJobMetrics
from deployments.preprocessor import PreprocessorMetrics
from deployments.request_metrics import PrometheusRequestMetrics
from deployments.session_metrics import SessionMetrics

RAY = Path(ray.__file__).parent
NODE_METRICS = RAY / "dashboard" / "modules" / "reporter" / "reporter_agent.py"
TYPES = {"Counter": Counter, "Gauge": Gauge, "Histogram": Histogram}
OF_REPLICAS = frozenset({"deployment", "replica", "application"})
"""The labels that Serve adds to the metrics of its replicas."""
OF_ALL = frozenset({"job", "instance", "ray_io_cluster", "NodeAddress", "WorkerId", "SessionName"})

Labels = frozenset[str]


def our_metrics() -> dict[str, Labels]:
    """Return the labels of the metrics of raylens, by their names in Prometheus."""
    owners = (
        PrometheusEngineMetrics("model"),
        PrometheusJobMetrics(),
        PrometheusRequestMetrics(),
        PreprocessorMetrics(),
        SessionMetrics(),
    )
    found: dict[str, Labels] = {}
    for metric in (value for owner in owners for value in vars(owner).values()):
        if isinstance(metric, Metric):
            own_labels = frozenset(metric.info["tag_keys"])
            is_serves = isinstance(
                metric, serve_metrics.Counter | serve_metrics.Gauge | serve_metrics.Histogram
            )
            labels = own_labels | (OF_REPLICAS if is_serves else frozenset())
            found |= dict.fromkeys(_exported_names(metric.info["name"], type(metric)), labels)
    return found


def rays_metrics() -> dict[str, Labels | None]:
    """Return the labels of the metrics of Serve and of Ray's nodes; None if the code doesn't tell
    them."""
    found: dict[str, Labels | None] = {}
    for path in (*(RAY / "serve").rglob("*.py"), NODE_METRICS):
        for name, metric_type, labels in _constructed(ast.parse(path.read_text())):
            found |= dict.fromkeys(_exported_names(name, metric_type), labels)
    return found


def modules_with_metrics(folder: Path) -> set[str]:
    """Return the names of the modules that construct metrics, or choose their type."""
    return {
        path.stem
        for path in folder.rglob("*.py")
        if TYPES.keys() & _imported_or_used(ast.parse(path.read_text()))
    }


def _exported_names(name: str, metric_type: type[Metric]) -> list[str]:
    """Return the names of a metric's series in Prometheus."""
    if issubclass(metric_type, Counter):
        return [f"ray_{name.removesuffix('_total')}_total"]
    if issubclass(metric_type, Histogram):
        return [f"ray_{name}_{part}" for part in ("bucket", "sum", "count")]
    return [f"ray_{name}"]


def _constructed(tree: ast.AST) -> Iterator[tuple[str, type[Metric], Labels | None]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else ""
            called = function.id if isinstance(function, ast.Name) else called
            name = _metric_name(node)
            if called in TYPES and name is not None:
                yield name, TYPES[called], _labels(node)


def _metric_name(call: ast.Call) -> str | None:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "name"]
    value = (*call.args, *named)[0] if call.args or named else None
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    if isinstance(value, ast.JoinedStr):  # the only variable is the protocol
        parts = (str(p.value) if isinstance(p, ast.Constant) else "http" for p in value.values)
        return "".join(parts)
    return None


def _labels(call: ast.Call) -> Labels | None:
    tag_keys = next((each.value for each in call.keywords if each.arg == "tag_keys"), None)
    if tag_keys is None and len(call.args) < 3:
        return OF_REPLICAS
    if not isinstance(tag_keys, ast.Tuple):
        return None
    own = {element.value for element in tag_keys.elts if isinstance(element, ast.Constant)}
    return OF_REPLICAS | {str(label) for label in own}


def _imported_or_used(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and "metrics" in (node.module or ""):
            names.update(alias.name for alias in node.names)
    return names
