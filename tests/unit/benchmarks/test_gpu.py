"""The benchmark for a GPU, small and on the CPU, as on a machine that has neither Ray nor FastAPI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
NOT_THERE = (
    "ray",
    "fastapi",
    "starlette",
    "sqlalchemy",
    "alembic",
    "openai",
    "moondream",
    "jsonschema",
)
SITE = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_THERE!r}:
            raise ImportError(f"{{name}} isn't there")

sys.meta_path.insert(0, Refuse())
"""


def test_every_stage_passes_where_only_torch_and_transformers_are(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)  # holds for the processes that it starts, too
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device=cpu",
        "--scale=tiny",
        f"--out={tmp_path / 'out'}",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert {part["stage"] for part in parts} == {"right", "shares", "fast", "why"}
    assert {part["state"] for part in parts} == {"done"}
    assert all(part["lines"] for part in parts)


def test_processes_that_preprocess_load_neither_torch_nor_models() -> None:
    told = "import benchmarks.gpu.pixels, sys; print([name for name in ('torch', 'models') if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "[]\n", ended.stderr
