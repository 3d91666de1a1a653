"""The requests of docs/dialects.md, and the answers that follow them."""

from __future__ import annotations

import argparse
import base64
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/dialects.md"
BASE_URL = "http://127.0.0.1:8000"
_EXAMPLE = re.compile(r"```bash\n(curl .*?)\n```\n+```json\n(.*?)\n```", re.DOTALL)
_PICTURE = re.compile(r"\$\(base64 -w0 ([\w./]+)\)")


@dataclass(frozen=True)
class Example:
    """A command, and the JSON that it is said to print."""

    command: str
    answer: Any

    @property
    def name(self) -> str:
        """The method and path."""
        options = self._parse()
        return f"{options.method} {options.url.removeprefix(BASE_URL)}"

    def run(self, client: httpx.Client, variables: dict[str, str]) -> httpx.Response:
        """Send the request. ``variables`` are the values of ``$name`` in the command."""
        options = self._parse()
        url = options.url.removeprefix(BASE_URL)
        for name, value in variables.items():
            url = url.replace(f"${name}", value)
        headers = dict(header.split(": ", 1) for header in options.header)
        content = None if options.data is None else _PICTURE.sub(_read_base64, options.data)
        fields = dict(field.split("=", 1) for field in options.form)
        files = {
            name: (Path(value[1:]).name, (ROOT / value[1:]).read_bytes())
            for name, value in fields.items()
            if value.startswith("@")
        }
        data = {name: value for name, value in fields.items() if name not in files}
        return client.request(
            options.method,
            url,
            headers=headers,
            content=content,
            data=data or None,
            files=files or None,
        )

    def _parse(self) -> argparse.Namespace:
        command, _, document = self.command.partition(" <<EOF\n")
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("-s", action="store_true")
        parser.add_argument("-X", dest="method")
        parser.add_argument("-H", dest="header", action="append", default=[])
        parser.add_argument("-F", dest="form", action="append", default=[])
        parser.add_argument("-d", dest="data")
        parser.add_argument("url")
        options = parser.parse_args(shlex.split(command)[1:])
        if options.data == "@-":
            options.data = document.removesuffix("\nEOF")
        has_body = options.form or options.data is not None
        options.method = options.method or ("POST" if has_body else "GET")
        return options


def _read_base64(match: re.Match[str]) -> str:
    return base64.b64encode((ROOT / match[1]).read_bytes()).decode()


def read_examples() -> Iterator[Example]:
    for command, answer in _EXAMPLE.findall(DOCUMENT.read_text()):
        yield Example(command, json.loads(answer))
