"""The GPU benchmark at its tiny scale on a CPU, on a machine without Ray and FastAPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
BLOCKED = (
    "ray",
    "fastapi",
    "starlette",
    "sqlalchemy",
    "alembic",
    "openai",
    "moondream",
    "jsonschema",
)
"""Packages whose import fails."""
SITECUSTOMIZE = f"""
import sys

class BlockingFinder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, BlockingFinder())
"""


def test_every_stage_passes_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    # A sitecustomize module applies to subprocesses as well.
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device=cpu",
        "--scale=tiny",
        f"--out={tmp_path / 'out'}",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert process.returncode == 0, process.stdout + process.stderr
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert {part["stage"] for part in parts} == {"right", "shares", "fast", "why"}
    assert {part["state"] for part in parts} == {"done"}
    assert all(part["lines"] for part in parts)


def test_preprocessing_processes_import_neither_torch_nor_models() -> None:
    code = (
        "import benchmarks.gpu.pixels, sys;"
        " print([name for name in ('torch', 'models') if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.stdout == "[]\n", process.stderr
