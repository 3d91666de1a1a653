"""The Kubernetes objects of an overlay or of the chart, and what they say about raylens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import yaml

Object = dict[str, Any]

UNITS = {
    "m": 1e-3,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
}


def quantity(value: str | int) -> float:
    """Return the number that a Kubernetes quantity stands for."""
    text = str(value)
    unit = text.lstrip("0123456789.")
    return float(text.removesuffix(unit)) * (UNITS[unit] if unit else 1)


class Objects(list[Object]):
    """All objects of one rendering."""

    @classmethod
    def parse(cls, text: str) -> Objects:
        return cls(value for value in yaml.safe_load_all(text) if value)

    def of(self, kind: str) -> list[Object]:
        return [value for value in self if value["kind"] == kind]

    def named(self, kind: str, suffix: str) -> Object:
        (found,) = (o for o in self.of(kind) if o["metadata"]["name"].endswith(suffix))
        return found

    @cached_property
    def service(self) -> Object:
        (service,) = self.of("RayService")
        return service

    @property
    def cluster(self) -> Object:
        cluster: Object = self.service["spec"]["rayClusterConfig"]
        return cluster

    @property
    def groups(self) -> dict[str, Object]:
        """The groups of workers, by their names."""
        return {group["groupName"]: group for group in self.cluster["workerGroupSpecs"]}

    @property
    def ray_pods(self) -> dict[str, Object]:
        """The pod templates of the head and of all groups."""
        workers = {name: group["template"] for name, group in self.groups.items()}
        return {"head": self.cluster["headGroupSpec"]["template"], **workers}

    @property
    def pods(self) -> dict[str, Object]:
        """All pod templates, with the labels that KubeRay adds to those of Ray."""
        added = {"ray.io/is-ray-node": "yes"}
        pods = {name: _labelled(pod, added) for name, pod in self.ray_pods.items()}
        for value in self.of("StatefulSet"):
            pods[value["metadata"]["name"]] = value["spec"]["template"]
        for value in self.of("CronJob"):
            pods[value["metadata"]["name"]] = value["spec"]["jobTemplate"]["spec"]["template"]
        return pods

    @property
    def serve_config(self) -> Object:
        config: Object = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        return config

    @property
    def application(self) -> Object:
        (application,) = self.serve_config["applications"]
        return application  # type: ignore[no-any-return]


def _labelled(pod: Object, labels: dict[str, str]) -> Object:
    metadata = pod["metadata"]
    return {**pod, "metadata": {**metadata, "labels": {**metadata["labels"], **labels}}}


def environment(pod: Object) -> dict[str, Any]:
    """Return the values of a Ray container's variables, or the keys of Secrets that hold them."""
    variables = pod["spec"]["containers"][0]["env"]
    names = [variable["name"] for variable in variables]
    assert len(names) == len(set(names)), names
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in variables}


def secret_keys(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the Secrets and keys to which any part of an object refers."""
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if isinstance(value.get("secret"), dict) and "secretName" in value["secret"]:
            yield value["secret"]["secretName"], "keys.yaml"
        if "authOptions" in value:
            yield value["authOptions"]["secretName"], "auth_token"
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from secret_keys(part)


def claims(pod: Object) -> set[str]:
    volumes = pod["spec"].get("volumes", [])
    claim = "persistentVolumeClaim"
    return {volume[claim]["claimName"] for volume in volumes if claim in volume}
