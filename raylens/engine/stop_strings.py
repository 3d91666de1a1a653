"""Stop strings in streamed text."""

from __future__ import annotations

from raylens.engine.overlap import overlap


class StopStrings:
    """Ends a text at the first stop string, and never returns part of one."""

    def __init__(self, strings: tuple[str, ...] = ()) -> None:
        self._strings = strings
        self._buffer = ""
        """Text that may be the beginning of a stop string."""
        self.stopped = False
        """Whether a stop string is complete."""

    def push(self, text: str, can_stop: bool = True) -> str:
        """Add text, and return the text that is final: it can no longer belong to a stop string.

        Sets ``stopped`` once a stop string is complete. Without ``can_stop``, the text so far ends
        at none.
        """
        text, self._buffer = self._buffer + text, ""
        if not can_stop:
            return text
        matches = [text.find(string) for string in self._strings]
        starts = [index for index in matches if index >= 0]
        if starts:
            self.stopped = True
            return text[: min(starts)]
        held = max((overlap(text, string) for string in self._strings), default=0)
        final_chars = len(text) - held
        self._buffer = text[final_chars:]
        return text[:final_chars]

    def flush(self) -> str:
        """Return the text that was held back as the possible beginning of a stop string."""
        text, self._buffer = self._buffer, ""
        return text
