"""The sections of docs/clients.md that are run: code, and the text that it prints."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.clients.environments import ROOT

_SECTION = re.compile(r"^### (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A section's code, and what it prints."""

    title: str
    language: str
    """``python``, ``js`` or ``bash``."""
    code: str
    output: str


def read_examples() -> list[Example]:
    """Return the examples of docs/clients.md: each section of a client has one."""
    text = (ROOT / "docs/clients.md").read_text()
    _, *pieces = _SECTION.split(text)
    examples = []
    for title, body in zip(pieces[::2], pieces[1::2], strict=True):
        (language, code), (output_language, output) = _BLOCK.findall(body.split("\n## ")[0])
        assert output_language == "text", title
        examples.append(Example(title, language, code, output))
    return examples
