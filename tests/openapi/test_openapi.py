"""A server with keys, held against its own description by Schemathesis: schemathesis.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raylens.core.keys import Scope, generate_key, hash_key
from testing.server import running_server

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]
KEY = generate_key()
MIN_CASES = 2_000
GENERATED = re.compile(r"(\d+) generated")


def add_key(config: dict[str, Any]) -> None:
    key = {"name": "contract", "hash": hash_key(KEY), "scopes": [scope.value for scope in Scope]}
    config["applications"][0]["args"]["auth"] = {"keys": [key]}


def test_the_server_keeps_to_its_description(tmp_path: Path) -> None:
    with running_server(ROOT / "serve_config.yaml", add_key) as url:
        process = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                *("--config-file", str(ROOT / "schemathesis.toml")),
                *("run", f"{url}/openapi.json"),
                *("--header", f"Authorization: Bearer {KEY}"),
                *("--exclude-path", "/api/v1/jobs/events"),  # a stream without an end
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    generated = GENERATED.search(process.stdout)
    assert generated is not None
    assert int(generated[1]) >= MIN_CASES
