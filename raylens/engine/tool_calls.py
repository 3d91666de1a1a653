"""Tool calls in an answer's text.

Source of the tagged form: the chat template of Qwen2.5, which is that of Nous Hermes.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import NamedTuple, Protocol

from raylens.core.types import ToolCallDelta, Tools
from raylens.engine.overlap import overlap
from raylens.engine.stop_strings import StopStrings

OPENING = "<tool_call>"
CLOSING = "</tool_call>"
_HEADER = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
MAX_HEADER_CHARS = 512
"""A call whose arguments begin later than this is plain text."""


class ToolCallStyle(Enum):
    """How a call is written in the text of an answer."""

    TAGGED = "tagged"
    """``<tool_call>``, a line with a JSON object of ``name`` and ``arguments``, and
    ``</tool_call>``. Text and calls may alternate."""
    ARGUMENTS = "arguments"
    """The whole answer is the arguments of the only function that may be called."""


class ParsedText(NamedTuple):
    """What a piece of an answer adds: text outside calls, and pieces of calls."""

    text: str
    calls: tuple[ToolCallDelta, ...] = ()


class ToolCallParser(Protocol):
    """Splits the text of an answer, piece by piece, into text and calls."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return False

    @property
    def has_open_call(self) -> bool:
        """Whether the last call is incomplete."""
        ...

    def push(self, text: str, can_stop: bool = True) -> ParsedText:
        """Add text. Without ``can_stop``, the text so far ends at no stop string."""
        ...

    def flush(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        ...


def make_parser(tools: Tools, style: ToolCallStyle, stop: tuple[str, ...] = ()) -> ToolCallParser:
    """Return the parser of an answer. Stop strings end its text, but no call."""
    if style is ToolCallStyle.ARGUMENTS:
        return ArgumentsParser(tools.required[0])
    names = frozenset(function.name for function in tools.functions)
    return TaggedParser(names, StopStrings(stop), is_call=bool(tools.required))


class ArgumentsParser(ToolCallParser):
    """Reads an answer that is a call's arguments."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name
        self._arguments = _JsonValue()

    @property
    def has_open_call(self) -> bool:
        return not self._arguments.is_complete

    def push(self, text: str, can_stop: bool = True) -> ParsedText:
        if not text:
            return ParsedText("")
        self._arguments.push(text)
        name, self._name = self._name, None
        return ParsedText("", (ToolCallDelta(0, name, text),))

    def flush(self) -> str:
        return ""


class TaggedParser(ToolCallParser):
    """Reads an answer that may contain calls between tags.

    What looks like a call, but is not JSON or calls none of the functions ``names``, stays text.
    ``is_call`` says that the answer is a call, so that its beginning is no text if it is cut off.
    """

    def __init__(
        self, names: frozenset[str], stop: StopStrings | None = None, is_call: bool = False
    ) -> None:
        self._names = names
        self._stop = stop or StopStrings()
        self._can_stop = True
        self._is_call = is_call
        self._buffer = ""
        """Text that is not classified yet."""
        self._count = 0
        self._arguments: _JsonValue | None = None
        """The arguments of the open call; None outside of calls."""
        self._after_call = False
        self._has_text = False

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    @property
    def has_open_call(self) -> bool:
        return self._arguments is not None

    def push(self, text: str, can_stop: bool = True) -> ParsedText:
        self._buffer += text
        self._can_stop = can_stop
        texts: list[str] = []
        calls: list[ToolCallDelta] = []
        while self._step(texts, calls):
            pass
        return ParsedText("".join(texts), tuple(calls))

    def flush(self) -> str:
        text, self._buffer = self._buffer, ""
        if self.stopped or self._arguments or self._after_call or self._is_part_of_call(text):
            text = ""
        return self._stop.flush() + text

    def _is_part_of_call(self, text: str) -> bool:
        """Whether the rest of an answer that was cut off is the beginning of a call."""
        text = text.strip()
        if self._is_call or not text:
            return bool(self._is_call or self._count)
        content = text.removeprefix(OPENING)
        if content != text:
            return content.lstrip()[:1] in ("", "{")
        return bool(self._count) and OPENING.startswith(text)

    def _step(self, texts: list[str], calls: list[ToolCallDelta]) -> bool:
        """Classify the next part of the buffer. Returns whether to go on."""
        if self.stopped:
            self._buffer = ""
            return False
        if self._arguments is not None:
            return self._read_arguments(calls)
        if self._after_call:
            return self._skip_closing()
        start = self._buffer.find(OPENING)
        if start < 0:
            end = len(self._buffer) - overlap(self._buffer, OPENING)
            self._take(end, texts)
            return False
        self._take(start, texts)
        return not self.stopped and self._read_header(texts, calls)

    def _take(self, end: int, texts: list[str]) -> None:
        """Take text up to ``end``, without the white space around calls."""
        end = len(self._buffer[:end].rstrip())
        text = self._buffer[:end]
        self._buffer = self._buffer[end:]
        if not self._has_text:
            text = text.lstrip()
        self._has_text = self._has_text or bool(text)
        texts.append(self._stop.push(text, self._can_stop))

    def _read_header(self, texts: list[str], calls: list[ToolCallDelta]) -> bool:
        """Read a call's name from the buffer, which begins with white space and the opening tag."""
        end = self._buffer.index(OPENING) + len(OPENING)
        header = _HEADER.match(self._buffer, end)
        if header is None:
            is_hopeless = CLOSING in self._buffer or len(self._buffer) > MAX_HEADER_CHARS
            if is_hopeless:
                self._take(end, texts)
            return is_hopeless
        name = json.loads(header[1], strict=False)
        if name not in self._names:
            self._take(end, texts)
            return True
        texts.append(self._stop.flush())
        calls.append(ToolCallDelta(self._count, name))
        self._buffer = self._buffer[header.end() :]
        self._arguments = _JsonValue()
        return True

    def _read_arguments(self, calls: list[ToolCallDelta]) -> bool:
        assert self._arguments is not None
        length = self._arguments.push(self._buffer)
        if length:
            calls.append(ToolCallDelta(self._count, arguments=self._buffer[:length]))
            self._buffer = self._buffer[length:]
        if not self._arguments.is_complete:
            return False
        self._arguments = None
        self._after_call = True
        self._count += 1
        return True

    def _skip_closing(self) -> bool:
        """Skip the end of a call, up to the closing tag."""
        end = self._buffer.find(CLOSING)
        if end >= 0:
            self._buffer = self._buffer[end + len(CLOSING) :]
            self._after_call = False
        return end >= 0


class _JsonValue:
    """Finds the end of an object."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def push(self, text: str) -> int:
        """Return how many characters of ``text`` belong to the value."""
        for index, character in enumerate(text):
            self._read(character)
            if self.is_complete:
                return index + 1
        return len(text)

    def _read(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif self._in_string:
            self._is_escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.is_complete = self._depth <= 0
