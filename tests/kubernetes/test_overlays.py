"""The overlays and components, as `kubectl kustomize` renders them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError

from tests.kubernetes import checks
from tests.kubernetes.objects import Objects

FOLDER = checks.ROOT / "kubernetes"
OVERLAYS = ("cpu", "gpu", "gpu-incremental-upgrade")
COMPONENTS = ("postgres", "shared-model-cache", "external-redis")


@pytest.fixture(scope="module", autouse=True)
def kubectl() -> str:
    found = shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl, which renders the overlays, is not installed")
    return found


def render(folder: Path) -> Objects:
    command = ["kubectl", "kustomize", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "deprecated" not in result.stderr, result.stderr
    return Objects.parse(result.stdout)


@cache
def overlay(name: str) -> Objects:
    return render(FOLDER / "overlays" / name)


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., Objects]:
    """A function that renders an overlay with components, as an operator's own overlay does."""
    shutil.copytree(FOLDER, tmp_path / "kubernetes")

    def compose(name: str, *components: str) -> Objects:
        folder = tmp_path / "kubernetes/overlays/own"
        folder.mkdir(exist_ok=True)
        own = {
            "resources": [f"../{name}"],
            "components": [f"../../components/{component}" for component in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
        return render(folder)

    return compose


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_holds_together(name: str) -> None:
    checks.check(overlay(name))
    checks.check_job_store(overlay(name), tied=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlays_rayservice_matches_kuberays_definition(name: str) -> None:
    checks.check_definition(overlay(name))


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_an_overlay_with_a_component_holds_together(composed, name: str, component: str) -> None:
    objects = composed(name, component)
    checks.check(objects)
    checks.check_job_store(objects, tied=component != "postgres")


def test_all_components_go_together(composed) -> None:
    objects = composed("gpu", *COMPONENTS)
    checks.check(objects)
    checks.check_definition(objects)
    checks.check_job_store(objects, tied=False)
    assert not objects.of("StatefulSet")
    (claim,) = objects.of("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_models_ask_for_a_card_only_on_the_gpu_overlay() -> None:
    limits = {
        name: overlay(name).ray_pods["models"]["spec"]["containers"][0]["resources"]["limits"]
        for name in OVERLAYS
    }
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert limits["gpu"]["nvidia.com/gpu"] == 1
    tolerations = overlay("gpu").ray_pods["models"]["spec"]["tolerations"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in tolerations


def test_the_incremental_overlay_differs_in_its_upgrade_only() -> None:
    gpu, incremental = overlay("gpu"), overlay("gpu-incremental-upgrade")
    strategy = incremental.service["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    upgraded = {**gpu.service["spec"], "upgradeStrategy": strategy}
    assert incremental.service["spec"] == upgraded
    for kind in {value["kind"] for value in gpu} - {"RayService"}:
        assert incremental.of(kind) == gpu.of(kind)


@pytest.mark.parametrize("image", ["raylens:cpu", "registry.example.com/raylens:1.2"])
def test_the_image_of_every_ray_container_is_set_in_one_place(tmp_path: Path, image: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    name, tag = image.split(":")
    own = {"resources": ["../cpu"], "images": [{"name": "raylens", "newName": name, "newTag": tag}]}
    folder = tmp_path / "kubernetes/overlays/own"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    pods = render(folder).ray_pods.values()
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {image}


def test_a_misspelled_field_of_a_rayservice_is_found() -> None:
    objects = Objects([*overlay("gpu")])
    service = {**objects.service, "spec": {**objects.service["spec"], "serveConfigV3": ""}}
    errors = list(checks.service_validator().iter_errors(service))
    assert ["serveConfigV3" in error.message for error in errors] == [True]
    head = Objects(yaml.safe_load_all(yaml.safe_dump(objects.service)))
    head.ray_pods["head"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(ValidationError, match="volumeMount"):
        checks.service_validator().validate(head.service)
