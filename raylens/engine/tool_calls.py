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

    @property
    def final_chars(self) -> int:
        """Characters of the answer, calls included, that can't belong to a stop string."""
        ...

    def push(self, text: str, can_stop: bool = True) -> ParsedText:
        """Add text. Without ``can_stop``, the text so far ends at no stop string."""
        ...

    def flush(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        ...


def make_parser(
    tools: Tools, style: ToolCallStyle, stop: tuple[str, ...] = (), continues: bool = False
) -> ToolCallParser:
    """Return the parser of an answer. Stop strings end its text, but no call.

    With ``continues``, the answer continues a text, and its leading white space stays.
    """
    if style is ToolCallStyle.ARGUMENTS:
        return ArgumentsParser(tools.required[0])
    names = frozenset(function.name for function in tools.functions)
    return TaggedParser(names, StopStrings(stop), bool(tools.required), continues)


class ArgumentsParser(ToolCallParser):
    """Reads an answer that is a call's arguments."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name
        self._arguments = _JsonValue()
        self._chars = 0

    @property
    def has_open_call(self) -> bool:
        return not self._arguments.is_complete

    @property
    def final_chars(self) -> int:
        return self._chars

    def push(self, text: str, can_stop: bool = True) -> ParsedText:
        if not text:
            return ParsedText("")
        self._chars += len(text)
        self._arguments.push(text)
        name, self._name = self._name, None
        return ParsedText("", (ToolCallDelta(0, name, text),))

    def flush(self) -> str:
        return ""


class TaggedParser(ToolCallParser):
    """Reads an answer that may contain calls between tags.

    What looks like a call, but is not JSON or calls none of the functions ``names``, stays text.
    White space around calls is dropped. ``is_call`` says that the answer is a call, so that its
    beginning is no text if it is cut off. ``continues`` is as in :func:`make_parser`.
    """

    def __init__(
        self,
        names: frozenset[str],
        stop: StopStrings | None = None,
        is_call: bool = False,
        continues: bool = False,
    ) -> None:
        self._names = names
        self._stop = stop or StopStrings()
        self._can_stop = True
        self._is_call = is_call
        self._buffer = ""
        """Text that is not classified yet."""
        self._space = ""
        """White space that may stand before a call."""
        self._count = 0
        self._arguments: _JsonValue | None = None
        """The arguments of the open call; None outside of calls."""
        self._after_call = False
        self._has_text = continues
        self._ends_with_text = True
        """Whether there was text since the last call."""
        self._call_chars = 0
        """Characters of calls so far, tags included."""

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    @property
    def has_open_call(self) -> bool:
        return self._arguments is not None

    @property
    def final_chars(self) -> int:
        return self._stop.returned_chars + self._call_chars

    def push(self, text: str, can_stop: bool = True) -> ParsedText:
        self._buffer += text
        self._can_stop = can_stop
        texts: list[str] = []
        calls: list[ToolCallDelta] = []
        while self._step(texts, calls):
            pass
        return ParsedText("".join(texts), tuple(calls))

    def flush(self) -> str:
        texts: list[str] = []
        if self.stopped:
            self._buffer = ""
        if self._arguments or self._after_call or self._is_part_of_call(self._buffer):
            self._skip(len(self._buffer))
            self._space = ""
        else:
            self._take(len(self._buffer), texts)
        if not self.stopped:
            self._emit(self._stop.flush(), texts)
        if self._ends_with_text:
            texts.append(self._space)
        return "".join(texts)

    def _is_part_of_call(self, text: str) -> bool:
        """Whether the rest of an answer that was cut off is the beginning of a call."""
        text = text.strip()
        if self._is_call or not text:
            return self._is_call
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
            self._take(len(self._buffer) - overlap(self._buffer, OPENING), texts)
            return False
        self._take(start, texts)
        return not self.stopped and self._read_header(texts, calls)

    def _take(self, end: int, texts: list[str]) -> None:
        """Take the buffer up to ``end`` as text."""
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        self._emit(self._stop.push(text, self._can_stop), texts)

    def _emit(self, text: str, texts: list[str]) -> None:
        """Return text in ``texts``. White space at its end is held back."""
        text = self._space + text
        if not self._has_text:
            text = text.lstrip()
        final = text.rstrip()
        self._space = text[len(final) :]
        self._has_text = self._has_text or bool(final)
        self._ends_with_text = self._ends_with_text or bool(final)
        texts.append(final)

    def _skip(self, end: int) -> None:
        """Remove the buffer up to ``end``, which is part of a call."""
        self._buffer = self._buffer[end:]
        self._call_chars += end

    def _read_header(self, texts: list[str], calls: list[ToolCallDelta]) -> bool:
        """Read a call's name from the buffer, which begins with the opening tag."""
        header = _HEADER.match(self._buffer, len(OPENING))
        if header is None:
            is_hopeless = CLOSING in self._buffer or len(self._buffer) > MAX_HEADER_CHARS
            if is_hopeless:
                self._take(len(OPENING), texts)
            return is_hopeless
        name = json.loads(header[1], strict=False)
        if name not in self._names:
            self._take(len(OPENING), texts)
            return True
        self._emit(self._stop.flush(), texts)
        self._space = ""
        self._ends_with_text = False
        calls.append(ToolCallDelta(self._count, name))
        self._skip(header.end())
        self._arguments = _JsonValue()
        return True

    def _read_arguments(self, calls: list[ToolCallDelta]) -> bool:
        assert self._arguments is not None
        length = self._arguments.push(self._buffer)
        if length:
            calls.append(ToolCallDelta(self._count, arguments=self._buffer[:length]))
            self._skip(length)
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
            self._skip(end + len(CLOSING))
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
