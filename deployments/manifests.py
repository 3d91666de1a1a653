"""Write the parts of the cluster's files that have their source elsewhere.

``python -m deployments.manifests`` writes the application of each overlay, of the Helm chart and of
``cluster.yaml`` from ``configs/``, and the environment of containers from
:mod:`deployments.ray_environment`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from deployments.ray_environment import ENVIRONMENT, WORKER

ROOT = Path(__file__).parents[1]
SERVICE = "raylens"
"""The name of the RayService."""
FRONT = "front"
"""The Ray resource of the nodes for the ingress and the preprocessors.

Without it, a preprocessor could take half a CPU of a node whose model needs all of them.
"""
FRONT_SHARE = 0.001
SPREAD = {"num_replicas": 2, "max_replicas_per_node": 1, "max_surge_percent": 0}
"""The ingress, on two nodes: one of them may be lost, or drained. In an update the two are replaced
one after the other, for which no third node is needed."""
LIVE: dict[str, Any] = {}
"""The ``user_config`` of the shipped configurations."""
KEYS_FILE = "/etc/raylens/keys/keys.yaml"
"""In the pods, from a Secret."""
LAUNCHER_KEYS_FILE = "/home/ray/.raylens/keys.yaml"
"""On the nodes of ``cluster.yaml``, from its ``file_mounts``."""
_HEADER = "# Written by `python -m deployments.manifests`. Change its sources instead: {source}.\n"


class _Dumper(yaml.SafeDumper):
    """Repeats values instead of writing anchors, which hide what a deployment gets. The live
    settings are those of all deployments, and stand there once."""

    def ignore_aliases(self, data: Any) -> bool:
        return data != LIVE

    def generate_anchor(self, node: yaml.Node) -> str:
        return "live"


def cluster_config(
    config: dict[str, Any], hosts: list[str], keys_file: str = KEYS_FILE
) -> dict[str, Any]:
    """Return a Serve config for a cluster, whose proxies answer to ``hosts``.

    This is all that differs from the same config on one machine.
    """
    config = copy.deepcopy(config)
    config["proxy_location"] = "EveryNode"
    config["http_options"]["host"] = "0.0.0.0"
    (application,) = config["applications"]
    application["args"] |= {
        "allowed_hosts": hosts,
        "auth": {"keys_file": keys_file},
        "log_format": "json",
    }
    for deployment in application["deployments"]:
        if deployment["name"] == "Ingress":
            deployment |= SPREAD
        elif deployment.get("max_surge_percent") == 0:
            del deployment["max_surge_percent"]  # a cluster has room for another replica
        if deployment["name"] == "Preprocessor":
            deployment["autoscaling_config"]["min_replicas"] = 2
        if deployment["name"] in ("Ingress", "Preprocessor", "Realtime"):
            deployment["ray_actor_options"]["resources"] = {FRONT: FRONT_SHARE}
    return config


def service_hosts(service: str) -> list[str]:
    """Return the names of a Service within its cluster, in any namespace.

    Nobody can register a name below ``.svc``. Those below ``.local`` are allowed anyway.
    """
    return [service, "*.svc"]


def files() -> dict[str, str]:
    """Return the text of every written file by its path in the repository."""
    written = {}
    for name in ("cpu", "gpu"):
        text = _dump(cluster_config(_config(name), service_hosts(f"{SERVICE}-serve-svc")))
        header = _application_header(name)
        written[f"kubernetes/overlays/{name}/application.yaml"] = header + _service_patch(text)
        written[f"charts/raylens/files/{name}.yaml"] = header + text
    launched = cluster_config(_config("gpu"), [], LAUNCHER_KEYS_FILE)
    written["cluster_application.yaml"] = _application_header("gpu") + _dump(launched)
    header = _HEADER.format(source="deployments/ray_environment.py")
    written["kubernetes/base/environment.yaml"] = header + _environment_patch()
    written["charts/raylens/files/environment.yaml"] = header + _dump(ENVIRONMENT)
    written["charts/raylens/files/worker-environment.yaml"] = header + _dump(WORKER)
    return written


def _config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
    return config


def _application_header(name: str) -> str:
    return _HEADER.format(source=f"configs/{name}.yaml, deployments/manifests.py")


def _service_patch(serve_config: str) -> str:
    indented = "".join(f"    {line}" for line in serve_config.splitlines(keepends=True))
    head = f"apiVersion: ray.io/v1\nkind: RayService\nmetadata:\n  name: {SERVICE}\n"
    return f"{head}spec:\n  serveConfigV2: |\n{indented}"


def _environment_patch() -> str:
    """Return a JSON patch that appends the environment to the head's and the workers' own."""
    pods = {"headGroupSpec": ENVIRONMENT, "workerGroupSpecs/0": {**ENVIRONMENT, **WORKER}}
    lines = []
    for pod, variables in pods.items():
        path = f"/spec/rayClusterConfig/{pod}/template/spec/containers/0/env/-"
        for name, value in variables.items():
            variable = f"{{name: {name}, value: {json.dumps(value)}}}"
            lines.append(f"- op: add\n  path: {path}\n  value: {variable}\n")
    return "".join(lines)


def _dump(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    for path, text in files().items():
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
