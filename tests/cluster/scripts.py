"""Runs a script of tests/ in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.ray_environment import ENVIRONMENT, ONE_MACHINE

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 480


def run_script(module: str, folder: Path, prefix: Sequence[str] = (), **variables: str) -> Any:
    """Return what ``python -m tests.MODULE FOLDER`` prints as JSON. ``prefix`` is a command that
    runs it."""
    process = subprocess.run(
        [*prefix, sys.executable, "-m", f"tests.{module}", str(folder)],
        cwd=ROOT,
        env={
            **os.environ,
            **ENVIRONMENT,
            **ONE_MACHINE,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # keeps the cluster apart from any other
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    lines = process.stdout.splitlines()
    report = json.loads(next(line for line in lines if line.startswith("{")))
    print(json.dumps(report, indent=1))
    return report
