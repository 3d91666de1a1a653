"""The layers in pyproject.toml leave nothing out."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_in_a_layer() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in linter["contracts"] if c["type"] == "layers"]
    in_layers = {name for layer in layers for name in layer.split(" | ")}

    roots = {path.parent.name for path in ROOT.glob("[a-z]*/__init__.py")}
    parts = {path.parent.name for path in (ROOT / "raylens").glob("[a-z]*/__init__.py")}
    parts_of_raylens = {f"raylens.{name}" for name in parts}
    assert set(linter["root_packages"]) == roots
    assert in_layers == roots - {"raylens"} | parts_of_raylens


def test_only_the_benchmarks_own_tests_import_benchmarks() -> None:
    tests = ROOT / "tests"
    own_tests = tests / "unit" / "benchmarks"
    importing = [
        str(path.relative_to(ROOT))
        for path in tests.rglob("*.py")
        if not path.is_relative_to(own_tests) and "benchmarks" in imported_packages(path)
    ]
    assert importing == []


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    return {name.partition(".")[0] for name in imported_modules(ast.parse(path.read_text()))}


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
