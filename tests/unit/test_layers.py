"""The layers in pyproject.toml leave nothing out."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_in_a_layer() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in linter["contracts"] if c["type"] == "layers"]
    in_layers = {name for layer in layers for name in layer.split(" | ")}

    roots = {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")}
    parts_of_raylens = {f"raylens.{path.stem}" for path in (ROOT / "raylens").glob("[a-z]*")}
    assert set(linter["root_packages"]) == roots
    assert in_layers == roots - {"raylens"} | parts_of_raylens
