"""The lines of a batch's input file: JSON, a request each.

Format: OpenAI's API reference, "Batch", the request input object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raylens.core.errors import InvalidRequest
from raylens.core.wire import well_formed

MAX_CUSTOM_ID_CHARS = 512
_BLANKS = b" \t\r\n\v\f"


class InvalidLine(InvalidRequest):
    """A line is not a request."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Line:
    """What is known of a line without its body."""

    custom_id: str | None
    """None if it is missing or invalid."""
    model: str = ""
    """The model that the request names, if any."""
    error: InvalidLine | None = None
    """Why the line is no request; None if it is one."""


class BatchLines:
    """The lines of a file that aren't blank, by their numbers from 0, as in the file."""

    def __init__(self, text: bytes, endpoint: str, max_line_bytes: int) -> None:
        """Check all lines. ``endpoint`` is the route of the requests.

        This takes long for a large file.
        """
        self._texts = text.splitlines()
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes
        self._first_lines: dict[str, int] = {}
        self._lines = {
            number: self._check(number)
            for number, line in enumerate(self._texts)
            if line.strip(_BLANKS)
        }

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def numbers(self) -> list[int]:
        return list(self._lines)

    def __getitem__(self, number: int) -> Line:
        return self._lines[number]

    def body(self, number: int) -> dict[str, Any]:
        """Return the body of a line's request. Raises ``InvalidLine``."""
        error = self._lines[number].error
        if error is not None:
            raise error
        body: dict[str, Any] = json.loads(self._texts[number])["body"]
        return body

    def _check(self, number: int) -> Line:
        custom_id: str | None = None
        try:
            line = self._parse(number)
            custom_id = _custom_id_of(line)
            if self._first_lines.setdefault(custom_id, number) != number:
                raise InvalidLine("duplicate_custom_id", "custom_id: another line has the same one")
            body = self._body_of(line)
        except InvalidLine as error:
            message = f"line {number + 1}: {error.message}"
            return Line(custom_id, error=InvalidLine(error.code, message))
        model = body.get("model")
        return Line(custom_id, model if isinstance(model, str) else "")

    def _parse(self, number: int) -> Any:
        text = self._texts[number]
        if len(text) > self._max_line_bytes:
            message = f"{len(text)} bytes; the limit is {self._max_line_bytes} bytes"
            raise InvalidLine("line_too_long", message)
        try:
            return json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise InvalidLine("invalid_json_line", "not valid JSON") from None

    def _body_of(self, line: dict[str, Any]) -> dict[str, Any]:
        if line.get("method") != "POST":
            raise InvalidLine("invalid_method", "method: expected POST")
        if line.get("url") != self._endpoint:
            message = f"url: expected the batch's endpoint, {self._endpoint}"
            raise InvalidLine("invalid_url", message)
        body = line.get("body")
        if not isinstance(body, dict):
            raise InvalidLine("invalid_body", "body: expected an object")
        if body.get("stream"):
            raise InvalidLine("invalid_body", "body.stream: not supported in a batch")
        return body


def _custom_id_of(line: Any) -> str:
    custom_id = line.get("custom_id") if isinstance(line, dict) else None
    try:
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
            raise ValueError(f"expected 1 to {MAX_CUSTOM_ID_CHARS} characters")
        return well_formed(custom_id)
    except ValueError as error:
        raise InvalidLine("invalid_custom_id", f"custom_id: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
