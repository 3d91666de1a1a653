"""Environments of the clients: a virtual environment for each suite, and one for Node.js.

They are kept under ``.clients`` and made anew if their pins change.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITES = HERE / "suites"
ENVIRONMENTS = ROOT / ".clients"
NODE_MODULES = "package.json"


def suite_names() -> list[str]:
    """Return the names of the suites in Python."""
    return sorted(path.stem for path in (HERE / "requirements").glob("*.txt"))


def python_of(name: str) -> Path:
    """Return the Python of a suite's virtual environment."""
    folder = ENVIRONMENTS / name
    requirements = HERE / "requirements" / f"{name}.txt"
    if not _is_current(folder, requirements):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # The pins are complete. What they leave out, such as Moondream's own engine, isn't needed.
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        command = [*pip, "install", "-q", "--no-deps", "-r", str(requirements)]
        subprocess.run(command, check=True)
        _mark_as_current(folder, requirements)
    return folder / "bin/python"


def node_folder() -> Path:
    """Return a folder with the clients for Node.js and their suites."""
    folder = ENVIRONMENTS / "node"
    requirements = HERE / "requirements" / NODE_MODULES
    if not _is_current(folder, requirements):
        folder.mkdir(parents=True)
        shutil.copy(requirements, folder)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=folder, check=True)
        _mark_as_current(folder, requirements)
    for path in SUITES.glob("*.mjs"):
        shutil.copy(path, folder)
    return folder


def _is_current(folder: Path, requirements: Path) -> bool:
    """Whether the environment has these pins. Removes one that has others, or is incomplete, or
    whose Python is gone."""
    marker = folder / ".pins"
    has_pins = marker.exists() and marker.read_text() == requirements.read_text()
    if has_pins and (requirements.name == NODE_MODULES or (folder / "bin/python").exists()):
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _mark_as_current(folder: Path, requirements: Path) -> None:
    (folder / ".pins").write_text(requirements.read_text())
