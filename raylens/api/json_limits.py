"""Limits on a JSON body, checked before it is parsed.

Parsing and validating cost memory and time for every value, on the event loop that all requests
share. So values are counted in the text itself, at the speed of a search for bytes. Long strings,
which pictures and videos are, cost next to nothing.
"""

from __future__ import annotations

import re

from raylens.core.errors import InvalidRequest, PayloadTooLarge

LONG_STRING_BYTES = 1024
"""Longer strings don't count towards the limit on the text: they are pictures and videos, or
prompts, which have a limit of their own."""
_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*[\[{]")
_REST_OF_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_VALUES = (b",", b"{", b"[")
"""What precedes all values but those that follow a key."""


def check_json(body: bytes, max_bytes: int, max_values: int) -> None:
    """Raise an error for a JSON body that would be dear to read; pass whatever else it may be.

    ``max_bytes`` is of the text beside long strings, ``max_values`` of the elements of lists and
    objects. Raises ``PayloadTooLarge``, and ``InvalidRequest`` for JSON that is not UTF-8
    (RFC 8259, section 8.1).
    """
    if b"\0" in body[:4] or body.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidRequest("body: not valid JSON (expected UTF-8)", "body")
    if not _START.match(body):
        return
    text_bytes = values = strings = position = 0
    while True:
        quote = body.find(b'"', position)
        end = len(body) if quote < 0 else quote
        text_bytes += end - position
        values += sum(body.count(mark, position, end) for mark in _VALUES)
        strings += 1
        # Each value may have a key. More strings are no JSON, and take as long to count.
        if values > max_values or strings > 2 * max_values + 2:
            raise _too_much("values", max_values)
        if text_bytes > max_bytes:
            raise _too_much("bytes of JSON beside pictures and texts", max_bytes)
        if quote < 0:
            return
        position = _end_of_string(body, quote + 1, max_bytes)
        if position - quote <= LONG_STRING_BYTES:
            text_bytes += position - quote


def _end_of_string(body: bytes, start: int, max_bytes: int) -> int:
    """Return the offset behind a string's closing quote; the end of the body if it is open."""
    quote = body.find(b'"', start)
    if quote < 0:
        return len(body)
    if body[quote - 1] != ord("\\"):
        return quote + 1
    # An escaped quote, perhaps. Base64 has none, so this string is a text.
    match = _REST_OF_STRING.match(body, start, start + max_bytes)
    if match is None and len(body) > start + max_bytes:
        raise _too_much("bytes of a text", max_bytes)
    return len(body) if match is None else match.end()


def _too_much(what: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"body: over {limit} {what}, which is the limit", "body", limit)
