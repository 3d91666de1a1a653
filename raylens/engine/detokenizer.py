"""Incremental detokenization."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from raylens.engine.stop_strings import StopStrings


class Detokenizer:
    """Turns one answer's token ids into text, one at a time.

    Never returns half a character or part of a stop string. Strips leading whitespace, which models
    often generate first because the chat template does not end with it. With ``continues``, the
    answer continues a text, and its leading whitespace stays.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), continues: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop_strings = StopStrings(stop)
        self._has_text = continues
        self.decoded_chars = 0
        """Number of characters in the decoded text of all tokens so far, without leading
        whitespace."""

    def push(self, token_id: int, can_stop: bool = True) -> str:
        """Add a token, and return the text that this token makes final (which can no longer belong
        to a stop string).

        Sets ``stopped`` once a stop string is complete. Without ``can_stop``, the text so far ends
        at none.
        """
        return self._stop_strings.push(self._decode(token_id), can_stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._stop_strings.stopped

    def _decode(self, token_id: int) -> str:
        piece = self._stream.step(self._tokenizer, token_id) or ""
        if not self._has_text:
            piece = piece.lstrip()
            self._has_text = bool(piece)
        self.decoded_chars += len(piece)
        return piece

    def flush(self) -> str:
        """Return the text that was held back as the possible beginning of a stop string."""
        return self._stop_strings.flush()

    @property
    def returned_chars(self) -> int:
        """Number of these characters that ``push`` and ``flush`` have returned."""
        return self._stop_strings.returned_chars
