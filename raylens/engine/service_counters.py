"""How much of an engine's work each client has had.

These are the virtual token counters of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from raylens.engine.sequence import GenerationSequence, SequenceState

PROMPT_TOKEN_COST = 1
OUTPUT_TOKEN_COST = 2


class ServiceCounters:
    """Counts the tokens of each client, those of its current sequences included."""

    def __init__(self) -> None:
        self._ended: defaultdict[str, int] = defaultdict(int)
        """Of sequences that have ended."""

    def add(
        self, sequences: Iterable[GenerationSequence], current: Collection[GenerationSequence]
    ) -> None:
        """Note that ``sequences`` join the ``current`` ones.

        A client that comes back gets no credit for the time in which it asked for nothing: its
        counter begins at the lowest of the others.
        """
        new = {sequence.client for sequence in sequences}
        if not new:
            return
        active = {sequence.client for sequence in current}
        totals = self.totals(current)
        lowest = min((totals[client] for client in active), default=0)
        if not active:
            self._ended.clear()
        for client in new - active:
            self._ended[client] = max(self._ended[client], lowest)
        for client in self._ended.keys() - active - new:
            if self._ended[client] <= lowest:  # where it would begin anyway
                del self._ended[client]

    def end(self, sequence: GenerationSequence) -> None:
        """Note that a sequence ends."""
        self._ended[sequence.client] += _cost(sequence)

    def totals(self, current: Iterable[GenerationSequence]) -> defaultdict[str, int]:
        """Return the counter of each client."""
        totals = self._ended.copy()
        for sequence in current:
            totals[sequence.client] += _cost(sequence)
        return totals


def _cost(sequence: GenerationSequence) -> int:
    if sequence.state is SequenceState.WAITING:
        return 0
    prompt_tokens = len(sequence.prompt.token_ids)
    return PROMPT_TOKEN_COST * prompt_tokens + OUTPUT_TOKEN_COST * len(sequence.output_ids)
