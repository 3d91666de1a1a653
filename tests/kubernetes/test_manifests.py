"""The written files are what their sources say."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from deployments.manifests import ROOT, cluster_config, files
from deployments.ray_environment import ENVIRONMENT


@pytest.mark.parametrize("path", files())
def test_a_written_file_is_up_to_date(path: str) -> None:
    message = "run `python -m deployments.manifests`"
    assert (ROOT / path).read_text() == files()[path], message


@pytest.mark.parametrize("source", ["cpu", "gpu"])
def test_only_the_listed_settings_differ_from_one_machine(source: str) -> None:
    config = yaml.safe_load((ROOT / f"configs/{source}.yaml").read_text())
    changed = _differences("", config, cluster_config(config, ["name"]))
    (application,) = config["applications"]
    front = [d["name"] for d in application["deployments"]][:3]
    assert front == ["Ingress", "Preprocessor", "Realtime"]
    deployments = "applications.0.deployments"
    assert changed == {
        "proxy_location",
        "http_options.host",
        "applications.0.args.allowed_hosts",
        "applications.0.args.auth",
        "applications.0.args.log_format",
        f"{deployments}.0.num_replicas",
        f"{deployments}.0.max_replicas_per_node",
        *(f"{deployments}.{number}.max_surge_percent" for number in (0, 3, 4, 5)),
        f"{deployments}.1.autoscaling_config.min_replicas",
        *(f"{deployments}.{number}.ray_actor_options.resources" for number in range(3)),
    }


def _differences(path: str, one: Any, other: Any) -> set[str]:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        found: set[str] = set()
        for key in one.keys() | other.keys():
            found |= _differences(
                f"{path}.{key}" if path else str(key), one.get(key), other.get(key)
            )
        return found
    return set() if one == other else {path}


def test_the_launchers_file_starts_ray_with_exactly_our_environment() -> None:
    cluster = launcher()
    for node in ("head", "worker"):
        (start,) = (c for c in cluster[f"{node}_start_ray_commands"] if "ray start" in c)
        (exports,) = (part for part in start.split(";") if part.strip().startswith("export "))
        pairs = [word.split("=", 1) for word in exports.split()[1:]]
        assert dict(pairs) == ENVIRONMENT
        assert len(pairs) == len(ENVIRONMENT)


def test_the_launchers_head_has_no_replicas_and_deploys_the_application_last() -> None:
    cluster = launcher()
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    *_, start, last = cluster["head_start_ray_commands"]
    assert "--num-cpus=0" in start
    assert "serve deploy cluster_application.yaml" in last
    assert "RAY_AUTH_MODE=token" in last
    assert (ROOT / "cluster_application.yaml").exists()


def test_the_launchers_nodes_have_what_the_application_asks_for() -> None:
    config = yaml.safe_load((ROOT / "cluster_application.yaml").read_text())
    (application,) = config["applications"]
    keys_file = application["args"]["auth"]["keys_file"]
    cluster = launcher()
    assert keys_file in cluster["file_mounts"]
    types = cluster["available_node_types"]
    sizes = [(t["resources"], t.get("min_workers", 0)) for t in types.values()]
    for deployment in application["deployments"]:
        options = deployment["ray_actor_options"]
        custom = options.get("resources", {})
        need = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), **custom}
        rooms = [n for r, n in sizes if all(r.get(k, 0) >= v for k, v in need.items())]
        per_node = deployment.get("max_replicas_per_node")
        assert rooms, deployment["name"]
        if per_node is not None:
            assert max(rooms) * per_node >= deployment["num_replicas"]
    assert sum(t.get("max_workers", 0) for t in types.values()) <= cluster["max_workers"]


def launcher() -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return cluster
