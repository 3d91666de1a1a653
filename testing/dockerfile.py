"""Reads a Dockerfile and its .dockerignore."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str


@dataclass
class Stage:
    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def texts(self, name: str) -> list[str]:
        return [entry.text for entry in self.instructions if entry.name == name]


@dataclass(frozen=True)
class Dockerfile:
    arguments: dict[str, str]
    """Those before the first stage."""
    stages: list[Stage]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        arguments: dict[str, str] = {}
        stages: list[Stage] = []
        for entry in _instructions(path.read_text()):
            if entry.name == "FROM":
                base, _, name = entry.text.partition(" AS ")
                stages.append(Stage(base, name or None))
            elif stages:
                stages[-1].instructions.append(entry)
            else:
                name, _, default = entry.text.partition("=")
                arguments[name] = default
        return cls(arguments, stages)

    def chain(self, stage: Stage) -> list[Instruction]:
        """Return the instructions of a stage after those of the stages that it is based on."""
        earlier = [other for other in self.stages if other.name == stage.base]
        before = self.chain(earlier[0]) if earlier else []
        return before + stage.instructions


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield Instruction(name.upper(), rest.strip())


def copies(instructions: list[Instruction]) -> Iterator[tuple[list[str], str]]:
    """Yield the sources and the target of each COPY from the context."""
    for entry in instructions:
        if entry.name == "COPY" and not entry.text.startswith("--from"):
            *sources, target = shlex.split(entry.text)
            yield sources, target


def is_ignored(path: str, ignore_file: str) -> bool:
    """Whether .dockerignore leaves a path out: the last pattern that matches it, or a folder that
    contains it, decides."""
    parts = path.split("/")
    candidates = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    ignored = False
    for line in ignore_file.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        is_exception = pattern.startswith("!")
        name = pattern.removeprefix("!").removeprefix("**/")
        deep = "**/" in pattern
        if any(fnmatch(part, name) for part in (parts if deep else candidates)):
            ignored = not is_exception
    return ignored
