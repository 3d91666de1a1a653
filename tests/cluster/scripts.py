"""Runs a script of tests/ in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from deployments.ray_environment import ENVIRONMENT, ONE_MACHINE

ROOT = Path(__file__).parents[2]


def run_script(module: str, folder: Path, **variables: str) -> Any:
    """Return what ``python -m tests.MODULE FOLDER`` prints as JSON."""
    process = subprocess.run(
        [sys.executable, "-m", f"tests.{module}", str(folder)],
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
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    lines = process.stdout.splitlines()
    report = json.loads(next(line for line in lines if line.startswith("{")))
    print(json.dumps(report, indent=1))
    return report
