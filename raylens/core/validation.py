"""Pydantic's validation errors in the configuration's terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

Path = tuple[str, ...]
"""The keys that lead to a setting: ``("jobs", "store")`` for ``jobs.store``."""

_LEADING_KEY = re.compile(r"([a-z][a-z0-9_]*(?:\.[^\s:]+)*): (.+)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    path: Path
    message: str
    type: str
    """Pydantic's name for the kind of error, such as ``int_parsing``."""

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.message}" if self.path else self.message


def explain(error: ValidationError) -> Iterator[Problem]:
    """Yield the problems in ``error``.

    The message of a section's own validator starts with the key at fault, such as ``store: …`` in
    ``jobs``. That key becomes part of the path.
    """
    for details in error.errors():
        path = tuple(map(str, details["loc"]))
        message = details["msg"].removeprefix("Value error, ")
        leading_key = _LEADING_KEY.fullmatch(message)
        is_section = isinstance(details["input"], Mapping)
        if details["type"] == "value_error" and is_section and leading_key:
            key, message = leading_key.groups()
            path = (*path, *key.split("."))
        yield Problem(path, message, details["type"])
