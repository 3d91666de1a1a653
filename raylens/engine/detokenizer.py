"""Incremental detokenization."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns one answer's token ids into text, one at a time.

    Never returns half a character or part of a stop string. Strips leading whitespace, which models
    often generate first because the chat template does not end with it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop_strings = stop
        self._buffer = ""
        """Text that may be the beginning of a stop string."""
        self._has_text = False
        self.stopped = False
        """Whether a stop string is complete."""
        self.decoded_chars = 0
        """Number of characters in the decoded text of all tokens so far, without leading
        whitespace."""
        self.returned_chars = 0
        """Number of these characters that ``push`` and ``flush`` have returned."""

    def push(self, token_id: int) -> str:
        """Add a token, and return the text that this token makes final (which can no longer belong
        to a stop string).

        Sets ``stopped`` once a stop string is complete.
        """
        text = self._push(token_id)
        self.returned_chars += len(text)
        return text

    def _push(self, token_id: int) -> str:
        piece = self._stream.step(self._tokenizer, token_id) or ""
        if not self._has_text:
            piece = piece.lstrip()
            self._has_text = bool(piece)
        self.decoded_chars += len(piece)
        text = self._buffer + piece
        matches = [text.find(stop_string) for stop_string in self._stop_strings]
        stop_starts = [index for index in matches if index >= 0]
        if stop_starts:
            self.stopped = True
            self._buffer = ""
            return text[: min(stop_starts)]
        overlaps = (_overlap(text, stop_string) for stop_string in self._stop_strings)
        final_chars = len(text) - max(overlaps, default=0)
        self._buffer = text[final_chars:]
        return text[:final_chars]

    def flush(self) -> str:
        """Return the text that was held back as the possible beginning of a stop string."""
        text = self._buffer
        self._buffer = ""
        self.returned_chars += len(text)
        return text


def _overlap(text: str, stop_string: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of
    ``stop_string``."""
    for length in range(min(len(text), len(stop_string) - 1), 0, -1):
        if text.endswith(stop_string[:length]):
            return length
    return 0
