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
        self.returned_chars = 0
        """Characters that ``push`` and ``flush`` have returned so far."""

    def push(self, text: str, can_stop: bool = True) -> str:
        """Add text, and return the text that is final: it can no longer belong to a stop string.

        Sets ``stopped`` once a stop string is complete. Without ``can_stop``, the text so far ends
        at none.
        """
        text, self._buffer = self._buffer + text, ""
        end = self._end_of_final(text) if can_stop else len(text)
        if not self.stopped:
            self._buffer = text[end:]
        self.returned_chars += end
        return text[:end]

    def _end_of_final(self, text: str) -> int:
        """Return where the final part of ``text`` ends. Sets ``stopped``."""
        starts = [start for string in self._strings if (start := text.find(string)) >= 0]
        if starts:
            self.stopped = True
            return min(starts)
        return len(text) - max((overlap(text, string) for string in self._strings), default=0)

    def flush(self) -> str:
        """Return the text that was held back as the possible beginning of a stop string."""
        text, self._buffer = self._buffer, ""
        self.returned_chars += len(text)
        return text
