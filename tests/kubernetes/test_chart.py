"""The Helm chart, as Helm's own library renders it, with each feature on and off."""

from __future__ import annotations

import copy
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.kubernetes import checks
from tests.kubernetes.objects import Object, Objects, environment
from tests.kubernetes.test_overlays import kubectl, overlay

CHART = checks.ROOT / "charts/raylens"
POSTGRES = {"store": "postgres", "postgres": {"blobs": "s3://raylens-jobs/blobs"}}
HOST = "vision.example.com"
INGRESS = {"enabled": True, "className": "nginx", "hosts": [HOST]}
FEATURES: dict[str, Object] = {
    "defaults": {},
    "postgres": {"jobs": POSTGRES},
    "backup": {"jobs": {"backup": {"enabled": True}}},
    "postgres and backup": {"jobs": {**POSTGRES, "backup": {"enabled": True}}},
    "external Redis": {"redis": {"bundled": False, "address": "rediss://redis.example.com:6380"}},
    "shared checkpoints": {"modelCache": {"shared": {"enabled": True, "storageClass": "files"}}},
    "no policies": {"networkPolicy": {"enabled": False}},
    "HTTP from one namespace": {
        "networkPolicy": {
            "httpFrom": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}
            ]
        }
    },
    "no budgets": {"disruptionBudgets": {"enabled": False}},
    "ingress": {"ingress": INGRESS},
    "ingress without TLS": {"ingress": {**INGRESS, "tls": {"enabled": False}}},
    "incremental": {"upgrade": {"incremental": {"enabled": True}}},
    "monitoring": {"monitoring": {"podMonitor": {"enabled": True, "labels": {"release": "p"}}}},
    "private registry": {
        "image": {"repository": "r.example.com/raylens", "pullSecrets": [{"name": "registry"}]}
    },
    "placement": {
        group: {"nodeSelector": {"pool": group}, "tolerations": [{"operator": "Exists"}]}
        for group in ("head", "front", "models")
    },
    "environment": {"env": [{"name": "RAYLENS_JOBS__CAPACITY", "value": "500"}]},
    "arguments": {"application": {"args": {"defaults": {"timeout_s": 90}}}, "hosts": [HOST]},
}


def render(values: Object, name: str = "raylens") -> Objects:
    with helm_python.Chart.load(CHART) as chart:
        manifests = chart.render(values, name=name, namespace="raylens")
    texts = [text for path, text in manifests.items() if not path.endswith("NOTES.txt")]
    return Objects(value for text in texts for value in Objects.parse(text))


def cpu_values() -> Object:
    values: Object = yaml.safe_load((CHART / "values-cpu.yaml").read_text())
    return values


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
@pytest.mark.parametrize("feature", FEATURES)
def test_the_chart_holds_together(preset: str, feature: str) -> None:
    values = _merged(cpu_values() if preset == "cpu" else {}, FEATURES[feature])
    objects = render(values)
    checks.check(objects)
    checks.check_job_store(objects, tied="postgres" not in feature)


@pytest.mark.parametrize("feature", FEATURES)
def test_the_charts_rayservice_matches_kuberays_definition(feature: str) -> None:
    checks.check_definition(render(FEATURES[feature]))


def _merged(base: Object, changes: Object) -> Object:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def test_the_chart_has_no_lint() -> None:
    report = helm_python.lint(str(CHART))
    assert not report["errors"]
    findings = [message["error"] for message in report["messages"]]
    assert findings == ["icon is recommended"]


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu-incremental-upgrade"])
def test_the_chart_deploys_what_the_overlay_does(name: str, kubectl: str) -> None:
    values = cpu_values() if name == "cpu" else {}
    if name == "gpu-incremental-upgrade":
        values = FEATURES["incremental"]
    chart, kustomized = render(values), overlay(name)
    assert chart.serve_config == kustomized.serve_config
    assert _comparable(chart.service["spec"]) == _comparable(kustomized.service["spec"])
    for kind in {value["kind"] for value in kustomized} | {value["kind"] for value in chart}:
        assert _specs(chart, kind) == _specs(kustomized, kind)


def _specs(objects: Objects, kind: str) -> Object:
    return {o["metadata"]["name"]: _comparable(o.get("spec")) for o in objects.of(kind)}


def _comparable(value: Any) -> Any:
    """Return an object without what may differ: the image's policy, and the order of variables."""
    if isinstance(value, list):
        items = [_comparable(item) for item in value]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: str(item["name"])) if named else items
    if not isinstance(value, dict):
        return value
    left_out = {"serveConfigV2", "imagePullPolicy"}
    return {key: _comparable(item) for key, item in value.items() if key not in left_out}


def test_two_releases_share_nothing() -> None:
    one, other = render({}, "raylens"), render({}, "second")
    names = [{(o["kind"], o["metadata"]["name"]) for o in objects} for objects in (one, other)]
    assert not names[0] & names[1]
    for policy in one.of("NetworkPolicy"):
        assert not checks.selected(policy["spec"]["podSelector"], other)


def test_features_do_what_they_say() -> None:
    assert not render(FEATURES["no policies"]).of("NetworkPolicy")
    assert not render(FEATURES["no budgets"]).of("PodDisruptionBudget")
    assert not render(FEATURES["external Redis"]).of("StatefulSet")
    pods = render(FEATURES["environment"]).ray_pods.values()
    assert {environment(pod)["RAYLENS_JOBS__CAPACITY"] for pod in pods} == {"500"}
    placed = render(FEATURES["placement"]).ray_pods
    assert {n: pod["spec"]["nodeSelector"]["pool"] for n, pod in placed.items()} == {
        name: name for name in placed
    }
    (monitor,) = render(FEATURES["monitoring"]).of("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "p"
    registry = render(FEATURES["private registry"]).ray_pods.values()
    assert {pod["spec"]["containers"][0]["image"] for pod in registry} == {
        "r.example.com/raylens:gpu"
    }
    assert all(pod["spec"]["imagePullSecrets"] == [{"name": "registry"}] for pod in registry)
    args = render(FEATURES["arguments"]).application["args"]
    assert args["defaults"]["timeout_s"] == 90
    assert HOST in args["allowed_hosts"]
    assert args["auth"]  # what `application.args` doesn't set stays


def test_an_ingress_leads_to_the_service_and_its_name_is_allowed() -> None:
    objects = render(FEATURES["ingress"])
    (ingress,) = objects.of("Ingress")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "raylens-serve-svc", "port": {"number": 8000}}
    assert rule["host"] == HOST
    assert HOST in objects.application["args"]["allowed_hosts"]
    assert ingress["spec"]["tls"] == [{"hosts": [HOST], "secretName": "raylens-tls"}]
    (plain,) = render(FEATURES["ingress without TLS"]).of("Ingress")
    assert "tls" not in plain["spec"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"jobs": {"store": "postgres"}}, "jobs.postgres.blobs"),
        ({"redis": {"bundled": False}}, "redis.address"),
        ({"ingress": {"enabled": True}}, "ingress.hosts"),
        ({"ingress": INGRESS, "upgrade": {"incremental": {"enabled": True}}}, "Gateway"),
        ({"preset": "tpu"}, "preset"),
        ({"image": {"tagg": "1"}}, "tagg"),
        ({"jobs": {"sqlite": {"size": "50 GB"}}}, "size"),
        ({"terminationGracePeriodSeconds": 30}, "terminationGracePeriodSeconds"),
        ({"models": {"resources": {"requests": {"cpu": "1"}}, "gpu": 1}}, "gpu"),
    ],
)
def test_values_that_cannot_work_are_refused(values: Object, message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


def test_a_backup_holds_the_jobs_and_pictures_and_old_ones_go(tmp_path: Path) -> None:
    data, target = tmp_path / "jobs", tmp_path / "backup"
    picture, removed = data / "blobs/ab/picture", target / "blobs/cd/removed"
    for path in (picture, removed):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"pixels")
    old = target / "jobs-20200101T000000Z.sqlite"
    old.touch()
    for path in (old, removed):
        _age(path, days=30)
    with closing(sqlite3.connect(data / "jobs.sqlite")) as live:
        live.execute("PRAGMA journal_mode=WAL")
        live.execute("CREATE TABLE jobs (id)")
        live.execute("INSERT INTO jobs VALUES (7)")
        live.commit()
        live.execute("INSERT INTO jobs VALUES (8)")  # not committed: the queue is at work
        _run_backup([str(data), str(target), "14"])
    assert not old.exists()
    assert not removed.exists()
    assert (target / "blobs/ab/picture").read_bytes() == b"pixels"
    (copied,) = target.glob("jobs-*")
    with closing(sqlite3.connect(copied)) as copy_:
        assert copy_.execute("SELECT id FROM jobs").fetchall() == [(7,)]


def _run_backup(arguments: list[str]) -> None:
    """Run what the CronJob runs."""
    (job,) = render(FEATURES["backup"]).of("CronJob")
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-c"]
    script, data, target, days = container["args"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(data).parent) in mounts
    assert target in mounts
    assert float(days) > 0
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)


def _age(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


__all__ = ["kubectl"]  # a fixture
