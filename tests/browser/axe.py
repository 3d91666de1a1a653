"""axe-core, an independent check of accessibility, from npm."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".clients" / "axe"
SCRIPT = FOLDER / "node_modules" / "axe-core" / "axe.min.js"
GRAVE = ("serious", "critical")


@cache
def read_script() -> str:
    """Return the script. Raises ``OSError`` or ``CalledProcessError`` if npm can't fetch it."""
    requirements = HERE / "package.json"
    installed = FOLDER / "package.json"
    if not SCRIPT.exists() or installed.read_text() != requirements.read_text():
        FOLDER.mkdir(parents=True, exist_ok=True)
        shutil.copy(requirements, installed)
        command = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=FOLDER, check=True)
    return SCRIPT.read_text()


def violations(page: Page) -> list[dict[str, Any]]:
    """Return what is serious or critical on a page as it is now."""
    page.evaluate(read_script())  # through the debugger, since the page's policy forbids it
    found = page.evaluate("axe.run().then((result) => result.violations)")
    return [
        {"rule": item["id"], "nodes": [node["html"] for node in item["nodes"]]}
        for item in found
        if item["impact"] in GRAVE
    ]
