"""What every rendering must fulfil, of an overlay or of the chart."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deployments.manifests import FRONT
from deployments.ray_environment import ENVIRONMENT, WORKER
from deployments.serve_schema import unknown_keys
from raylens.core.config import AppConfig, AuthConfig
from tests.kubernetes.objects import Object, Objects, claims, environment, quantity, secret_keys

ROOT = Path(__file__).parents[2]
VERSION = "1.37"
LOADING_S = 300
"""In which a replica of a model starts on another node."""
RAY_DRAIN_S = 30
"""RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S of Ray."""
NOT_BUILT_IN = ("RayService", "PodMonitor")
SECRETS = {
    ("raylens-keys", "keys.yaml"),
    ("raylens-ray-token", "auth_token"),
    ("raylens-redis", "password"),
    ("raylens-hugging-face", "token"),
    ("raylens-webhooks", "secrets"),
    ("raylens-postgres", "url"),
}
"""All that docs/kubernetes.md says how to make."""


def check(objects: Objects) -> None:
    """Check everything that holds whatever the overlay or the values are."""
    check_schemas(objects)
    check_service(objects)
    check_application(objects)
    check_resources(objects)
    check_environment(objects)
    check_pods(objects)
    check_selectors(objects)
    check_references(objects)
    check_grace_periods(objects)


def check_schemas(objects: Objects) -> None:
    for value in objects:
        if value["kind"] not in NOT_BUILT_IN:
            kubernetes_validate.validate(value, VERSION, strict=True)
    for pod in objects.pods.values():  # those in the RayService, too
        template = {"metadata": pod["metadata"], "spec": pod["spec"]}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "pod"}}
        kubernetes_validate.validate({**job, "spec": {"template": template}}, VERSION, strict=True)


@cache
def service_validator() -> Draft202012Validator:
    """Return the validator of RayServices. Unknown fields are mistakes.

    Kubernetes itself would drop them without a word.
    """
    path = os.environ.get("KUBERAY_CRD")
    if path is None:
        pytest.skip("set KUBERAY_CRD to KubeRay's ray.io_rayservices.yaml")
    versions = yaml.safe_load(Path(path).read_text())["spec"]["versions"]
    (version,) = (version for version in versions if version["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """Return an OpenAPI schema of a definition as a JSON schema without unknown fields."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        closed["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    keeps_unknown = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not keeps_unknown:
        closed.setdefault("additionalProperties", False)
    return closed


def check_definition(objects: Objects) -> None:
    """Check the RayService against KubeRay's definition, which is not always at hand."""
    errors = list(service_validator().iter_errors(objects.service))
    assert not errors, [f"{error.json_path}: {error.message}" for error in errors]


def check_service(objects: Objects) -> None:
    """Check what KubeRay's definition doesn't say."""
    cluster = objects.cluster
    assert len(objects.service["metadata"]["name"]) <= 47
    assert cluster["rayVersion"] == _installed_ray()
    assert cluster["authOptions"]["mode"] == "token"
    assert "externalStorageNamespace" not in cluster["gcsFaultToleranceOptions"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in objects.groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert not (group.get("resources") and group["rayStartParams"])  # KubeRay refuses both
    upgrade = objects.service["spec"]["upgradeStrategy"]
    if upgrade["type"] == "NewClusterWithIncrementalUpgrade":
        options = upgrade["clusterUpgradeOptions"]
        assert cluster["enableInTreeAutoscaling"]
        assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
        assert options["intervalSeconds"] > 0
        assert options["gatewayClassName"]


def _installed_ray() -> str:
    pins = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(r"^ray==(.+)$", pins, re.MULTILINE)
    return str(version)


def check_application(objects: Objects) -> None:
    config = objects.serve_config
    ServeDeploySchema.model_validate(config)
    assert not unknown_keys(config)
    application = AppConfig.model_validate(objects.application["args"])
    application.check_reach(config["http_options"]["host"])  # keys
    assert application.auth != "none"
    assert "*" not in application.allowed_hosts
    assert config["proxy_location"] == "EveryNode"  # the readiness of KubeRay's workers
    names = {deployment["name"] for deployment in objects.application["deployments"]}
    assert names == {
        "Ingress",
        "Preprocessor",
        "Realtime",
        *(model.name for model in application.models),
    }
    service = f"{objects.service['metadata']['name']}-serve-svc"
    assert service in application.allowed_hosts


def check_resources(objects: Objects) -> None:
    """Check that each replica fits into some node, and the least replicas into the most nodes."""
    nodes = [_ray_resources(group) for group in objects.groups.values()]
    for deployment in objects.application["deployments"]:
        need = _need(deployment)
        assert any(_fits(need, node) for node in nodes), (deployment["name"], need, nodes)
    assert not _unplaced(objects, "minReplicas", least=True)
    assert not _unplaced(objects, "maxReplicas", least=False)


def _unplaced(objects: Objects, size: str, *, least: bool) -> list[str]:
    """Return the deployments without room on all nodes, each replica on the first that has it."""
    free = [
        (name, _ray_resources(group))
        for name, group in objects.groups.items()
        for _ in range(group[size])
    ]
    placed: dict[tuple[str, int], int] = {}
    unplaced = []
    for name, need, limit in _replicas(objects, least=least):
        for index, (_, node) in enumerate(free):
            if _fits(need, node) and placed.get((name, index), 0) < limit:
                for resource, amount in need.items():
                    node[resource] -= amount
                placed[name, index] = placed.get((name, index), 0) + 1
                break
        else:
            unplaced.append(name)
    return unplaced


def _replicas(objects: Objects, *, least: bool) -> Iterator[tuple[str, dict[str, float], int]]:
    """Yield name, needs, and limit for each node, of each replica; those with the most first."""
    deployments = objects.application["deployments"]
    for deployment in sorted(deployments, key=lambda d: sorted(_need(d).items()), reverse=True):
        count = deployment.get("num_replicas")
        if count is None:
            scaling = AutoscalingConfig.model_validate(deployment["autoscaling_config"])
            count = scaling.min_replicas if least else scaling.max_replicas
        limit = deployment.get("max_replicas_per_node", 10**6)
        for _ in range(count):
            yield deployment["name"], _need(deployment), limit


def _need(deployment: Object) -> dict[str, float]:
    options = deployment["ray_actor_options"]
    custom = options.get("resources", {})
    known = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    return {**known, "memory": options.get("memory", 0), FRONT: custom.get(FRONT, 0)}


def _ray_resources(group: Object) -> dict[str, float]:
    """Return what KubeRay tells `ray start`."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return {
        "CPU": math.floor(quantity(limits["cpu"])),
        "GPU": sum(quantity(v) for k, v in limits.items() if k.endswith("gpu")),
        "memory": quantity(limits["memory"]),
        FRONT: float(group.get("resources", {}).get(FRONT, 0)),
    }


def _fits(need: dict[str, float], node: dict[str, float]) -> bool:
    return all(amount <= node[resource] + 1e-9 for resource, amount in need.items())


def check_environment(objects: Objects) -> None:
    for pod in objects.ray_pods.values():
        assert environment(pod).items() >= ENVIRONMENT.items()
        # KubeRay sets these from gcsFaultToleranceOptions and authOptions, and refuses ours.
        own = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_external_storage_namespace"}
        assert not environment(pod).keys() & {*own, "RAY_AUTH_TOKEN"}


def check_pods(objects: Objects) -> None:
    for name, pod in objects.pods.items():
        spec = pod["spec"]
        security = spec["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False, name
        volumes = {volume["name"] for volume in spec["volumes"]} if "volumes" in spec else {"data"}
        for container in spec["containers"]:
            _check_container(container, volumes)
    options = objects.cluster["autoscalerOptions"]
    head = objects.ray_pods["head"]["spec"]
    assert options["securityContext"] == head["containers"][0]["securityContext"]
    mounts = {mount["name"] for mount in options["volumeMounts"]}
    assert mounts == {"tmp", "kubernetes-token"}  # its only way to the API
    assert mounts <= {volume["name"] for volume in head["volumes"]}
    assert "kubernetes-token" not in {m["name"] for m in head["containers"][0]["volumeMounts"]}
    for pod in objects.ray_pods.values():
        assert "app.kubernetes.io/name" not in pod["metadata"]["labels"]
        container = pod["spec"]["containers"][0]
        paths = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert paths.keys() >= {"/tmp", "/dev/shm", environment(pod)["HF_HOME"]}
        (shared,) = (v for v in pod["spec"]["volumes"] if v["name"] == paths["/dev/shm"])
        assert shared["emptyDir"]["medium"] == "Memory"
        memory = quantity(container["resources"]["limits"]["memory"])
        assert 0 < quantity(shared["emptyDir"]["sizeLimit"]) < memory / 2
        auth = AppConfig.model_validate(objects.application["args"]).auth
        assert isinstance(auth, AuthConfig)
        assert auth.keys_file
        assert paths[str(auth.keys_file.parent)] == "keys"


def _check_container(container: Object, volumes: set[str]) -> None:
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    resources = container["resources"]
    assert resources["requests"].keys() == resources["limits"].keys() >= {"cpu", "memory"}
    for resource, request in resources["requests"].items():
        assert quantity(request) <= quantity(resources["limits"][resource])
    assert resources["requests"]["memory"] == resources["limits"]["memory"] or (
        container["name"] in ("redis", "backup")
    )
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def selected(selector: Object, objects: Objects) -> set[str]:
    """Return the names of the pods that a selector by labels selects."""
    wanted = selector.get("matchLabels", {}).items()
    return {n for n, pod in objects.pods.items() if pod["metadata"]["labels"].items() >= wanted}


def check_selectors(objects: Objects) -> None:
    ray = set(objects.ray_pods)
    for budget in objects.of("PodDisruptionBudget"):
        (name,) = selected(budget["spec"]["selector"], objects)
        assert name in objects.groups
    for service in objects.of("Service"):
        (name,) = selected({"matchLabels": service["spec"]["selector"]}, objects)
        ports = {p["name"] for c in objects.pods[name]["spec"]["containers"] for p in c["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for pod in objects.ray_pods.values():
        for constraint in pod["spec"].get("topologySpreadConstraints", []):
            (name,) = selected(constraint["labelSelector"], objects)
            assert objects.ray_pods[name] is pod
    for monitor in objects.of("PodMonitor"):
        assert selected(monitor["spec"]["selector"], objects) == ray
        named = {port["name"] for port in _ports(objects, "head")}
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= named
    if objects.of("NetworkPolicy"):
        _check_policies(objects)


def _ports(objects: Objects, pod: str) -> list[Object]:
    ports: list[Object] = objects.pods[pod]["spec"]["containers"][0]["ports"]
    return ports


def _check_policies(objects: Objects) -> None:
    ray = set(objects.ray_pods)
    deny = objects.named("NetworkPolicy", "-deny")["spec"]
    assert selected(deny["podSelector"], objects) == set(objects.pods)
    assert deny["policyTypes"] == ["Ingress"]
    assert "ingress" not in deny
    for policy in objects.of("NetworkPolicy"):
        spec = policy["spec"]
        for rule in spec.get("ingress", []):
            for source in rule["from"]:
                inside = "namespaceSelector" not in source and "ipBlock" not in source
                assert not inside or selected(source["podSelector"], objects)
                if "ports" not in rule:  # Ray's own
                    assert inside
                    assert selected(source["podSelector"], objects) == ray
    opened = {"http": {8000}, "operator": {8265, 52365, 8000}, "metrics": {8080, 44217, 44227}}
    for name, ports in opened.items():
        spec = objects.named("NetworkPolicy", f"-{name}")["spec"]
        assert selected(spec["podSelector"], objects) == ray
        (rule,) = spec["ingress"]
        assert {port["port"] for port in rule["ports"]} == ports
        assert ports - {52365} <= {port["containerPort"] for port in _ports(objects, "head")}
    if objects.of("StatefulSet"):
        spec = objects.named("NetworkPolicy", "-redis")["spec"]
        (rule,) = spec["ingress"]
        assert selected(rule["from"][0]["podSelector"], objects) == {"head"}
        host, _, port = objects.cluster["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
        assert [int(port)] == [p["port"] for p in rule["ports"]]
        assert host == objects.named("Service", "-redis")["metadata"]["name"]
    assert objects.serve_config["http_options"]["port"] == 8000


def check_references(objects: Objects) -> None:
    assert set(secret_keys(list(objects))) <= SECRETS
    assert not objects.of("Secret")
    present = {claim["metadata"]["name"] for claim in objects.of("PersistentVolumeClaim")}
    mounted = set().union(*map(claims, objects.pods.values()))
    assert mounted == present
    accounts = {account["metadata"]["name"] for account in objects.of("ServiceAccount")}
    for name, pod in objects.pods.items():
        used = pod["spec"].get("serviceAccountName")
        assert used is None if name == "head" else used in accounts  # the head's is KubeRay's


def check_grace_periods(objects: Objects) -> None:
    longest = AppConfig.model_validate(objects.application["args"]).defaults.max_timeout_s
    for name, pod in objects.ray_pods.items():
        drain_s = RAY_DRAIN_S
        if name != "head":
            assert environment(pod).items() >= WORKER.items()
            drain_s = int(WORKER["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            # Until then a replica of a model is replaced, and ends its answers.
            assert drain_s >= LOADING_S + longest
        assert pod["spec"]["terminationGracePeriodSeconds"] > drain_s
    assert objects.service["spec"]["rayClusterDeletionDelaySeconds"] > longest


def check_job_store(objects: Objects, *, tied: bool) -> None:
    """Check that a job queue with files, and nothing else, has a volume on the head."""
    head = objects.ray_pods["head"]
    folder = environment(head)["RAYLENS_JOBS__DATA_DIR"]
    store = environment(head)["RAYLENS_JOBS__STORE"]
    mounts = {m["mountPath"]: m["name"] for m in head["spec"]["containers"][0]["volumeMounts"]}
    on_volume = [path for path, name in mounts.items() if name == "jobs"]
    for pod in objects.ray_pods.values():
        assert environment(pod)["RAYLENS_JOBS__STORE"] == store
    jobs = AppConfig.model_validate(objects.application["args"]).jobs
    settings = {"store": store if tied else "postgresql://", "data_dir": folder}
    settings["blobs"] = environment(head)["RAYLENS_JOBS__BLOBS"]
    assert jobs.model_validate({**jobs.model_dump(), **settings}).is_tied_to_a_node is tied
    if tied:
        (path,) = on_volume
        # The volume's root belongs to root: the queue could not make it private.
        assert Path(folder).parent == Path(path)
        (term,) = head["spec"]["affinity"]["podAffinity"].popitem()[1]
        assert selected(term["labelSelector"], objects) >= {"head"}
        claim = objects.named("PersistentVolumeClaim", "-jobs")
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    else:
        assert not on_volume
        assert "affinity" not in head["spec"]
        assert store["secretKeyRef"]["name"] == "raylens-postgres"
