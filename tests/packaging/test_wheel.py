"""The wheel: what is in it, and that it serves without a checkout.

It is built and installed by the commands of docker/Dockerfile, in a new virtual environment.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import httpx
import pytest

import raylens
from models.cpu.build import CACHE_VARIABLE, cache_folder
from testing.dockerfile import Dockerfile
from testing.ports import free_port

ROOT = Path(__file__).parents[2]
PACKAGES = ("raylens", "deployments", "preprocessing", "models")
READY_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Installed:
    """``wheel``: a copy of the wheel that was installed. ``folder``: the image's work folder."""

    python: Path
    wheel: Path
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python.parent / command[0]), *command[1:]],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Follow the Dockerfile after its first RUN, which is about the image's users."""
    base = tmp_path_factory.mktemp("image")
    folder = base / "work"
    folder.mkdir()
    venv.create(base / "venv", with_pip=True)
    python = base / "venv" / "bin" / "python"
    _show_dependencies(python)
    environment = {
        "PATH": f"{python.parent}:/usr/bin:/bin",
        "HOME": str(base / "home"),
        "VARIANT": "cpu",
        "EXTRAS": "postgres heic mf",
        "PLUGINS": "",
        "TORCH_INDEX": "",
        # Nothing is downloaded: the tests' own environment has all of it, and the build backend.
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Compiling takes a minute: other tests use the same libraries.
        CACHE_VARIABLE: str(cache_folder()),
    }
    dockerfile = Dockerfile.read(ROOT / "docker" / "Dockerfile")
    kept = base / "dist"
    for stage in dockerfile.stages:
        for entry in stage.instructions:
            if entry.name == "COPY":
                _copy(entry.text, folder, kept)
            elif entry.name == "RUN" and "sudoers" not in entry.text:
                _shell(entry.text, folder, environment)
        if stage.name == "wheel":
            shutil.move(folder / "dist", kept)
            shutil.rmtree(folder)
            folder.mkdir()
            shutil.copy(ROOT / "constraints.txt", folder)
    (wheel,) = kept.glob("*.whl")
    return Installed(python, wheel, folder, environment)


def _show_dependencies(python: Path) -> None:
    """Let a virtual environment see this one's packages, but for an editable raylens: Python reads
    no .pth files in folders that a .pth file adds. Its own old setuptools would hide this one's."""
    uninstall = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"]
    subprocess.run(uninstall, check=True)
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    target = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    Path(target, "dependencies.pth").write_text(sysconfig.get_path("purelib"))


def _copy(text: str, folder: Path, kept: Path) -> None:
    *sources, target = shlex.split(text)
    if sources[0].startswith("--from"):
        shutil.copytree(kept, folder / target)
        return
    for source in sources:
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, folder / target, ignore=ignored)
        else:
            shutil.copy(ROOT / source, folder)


def _shell(command: str, folder: Path, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def test_the_wheel_has_every_file_of_the_packages_and_no_others(installed: Installed) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES, "serve_config.yaml", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    expected = {
        path if path.startswith(PACKAGES) else f"raylens/shipped/{path}" for path in tracked
    }
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert expected >= {f"{package}/py.typed" for package in PACKAGES}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheels_metadata_are_the_projects(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == raylens.__version__
    assert metadata["License-Expression"] == project["license"]
    required = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert len(required) == len(project["dependencies"])


def test_the_source_distribution_builds_the_same_wheel(
    installed: Installed, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert _contents(wheel) == _contents(installed.wheel)


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in files}


def test_an_installed_wheel_finds_its_configs_without_a_checkout(
    installed: Installed, tmp_path: Path
) -> None:
    assert installed.run("raylens", "--version", folder=tmp_path).stdout.strip() == (
        raylens.__version__
    )
    where = installed.run(
        "python", "-c", "import raylens; print(raylens.__file__)", folder=tmp_path
    )
    assert where.stdout.startswith(str(installed.python.parents[1]))
    for config in ("serve_config.yaml", "configs/cpu.yaml"):
        result = installed.run("raylens", "run", config, "--host", "0.0.0.0", folder=tmp_path)
        assert result.returncode == 2
        assert "RAYLENS_AUTH=none" in result.stderr  # it read the file, and wants keys
    missing = installed.run("raylens", "run", "mine.yaml", folder=tmp_path)
    assert "No such file" in missing.stderr


@pytest.mark.wheel
def test_the_images_command_serves_and_stops(installed: Installed, tmp_path: Path) -> None:
    dockerfile = Dockerfile.read(ROOT / "docker" / "Dockerfile")
    (command,) = dockerfile.stages[-1].texts("CMD")
    program, *arguments = json.loads(command)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **installed.environment,
        "RAYLENS_AUTH": "none",
        "RAYLENS_JOBS__DATA_DIR": str(tmp_path / "jobs"),
    }
    log = tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [str(installed.python.parent / program), *arguments, "--port", str(port)],
            cwd=installed.folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(server, url, log)
        caption = _caption(url)
        assert caption.json() == {"caption": "a red circle, a blue square and a yellow triangle"}
    finally:
        server.send_signal(signal.SIGTERM)
        status = server.wait(90)
    assert status == 0, log.read_text()[-3000:]


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    pytest.fail(f"not ready: {log.read_text()[-3000:]}")


def _caption(url: str) -> httpx.Response:
    with (ROOT / "docs" / "scene.png").open("rb") as picture:
        return httpx.post(
            f"{url}/v1/caption", files={"file": picture}, data={"length": "short"}, timeout=60
        )
