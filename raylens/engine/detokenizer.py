"""Tokens to text, as they come: never half a character, never a part of a stop string."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer. Leading white space, which chat templates leave to the model, is
    dropped."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self._begun = False
        self.stopped = False
        self.seen = 0
        """Characters of all tokens so far."""
        self.said = 0
        """Characters of them that were told."""

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token; sets ``stopped`` once a stop string is
        complete."""
        certain = self._push(token_id)
        self.said += len(certain)
        return certain

    def _push(self, token_id: int) -> str:
        piece = self._stream.step(self._tokenizer, token_id) or ""
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        self.seen += len(piece)
        text = self._held + piece
        ends = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back as the possible beginning of a stop string."""
        held, self._held = self._held, ""
        self.said += len(held)
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
    )
