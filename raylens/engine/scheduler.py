"""Decides which sequences run. Imports no torch.

Requests go in order of arrival, and none overtakes another because it is small. A job's counts as
having arrived ``JOB_PATIENCE_S`` later than it did: interactive requests go before it, but not for
ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raylens.core.types import Priority
from raylens.engine.model import Prompt
from raylens.engine.sequence import Sequence, State

JOB_PATIENCE_S = 10.0


class Scheduler:
    """Sequences that wait, those that enter, and those that run."""

    def __init__(
        self, max_batch_size: int, prefill_batch: int = 1, prefill_tokens: int = 0
    ) -> None:
        self.max_batch_size = max_batch_size
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        """Their prompts are read together."""
        self.running: list[Sequence] = []
        self._prefill_batch = prefill_batch
        self._prefill_tokens = prefill_tokens
        self._slots = list(range(max_batch_size))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.prefilling or self.running)

    @property
    def first(self) -> Sequence:
        """The next that is to enter, of those that wait."""
        return min(self.waiting, key=_rank)

    def add(self, sequences: Iterable[Sequence]) -> None:
        self.waiting.extend(sequences)

    def admit(self, reserve: Callable[[Sequence], bool]) -> list[Sequence]:
        """The sequences that are to enter: those that do, or the next for which there is a place in
        the batch and, says ``reserve``, in the cache."""
        if not self.prefilling:
            while self._takes_another() and reserve(self.first):
                self._admit(self.first)
        return self.prefilling

    def start_decoding(self, sequences: Iterable[Sequence]) -> None:
        """The prompts of these are read: they run."""
        for sequence in sequences:
            sequence.move(State.RUNNING)
            self.running.append(sequence)
            self.prefilling.remove(sequence)

    def remove(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Takes out the sequences that are ``gone``."""
        # Asked once for each: another thread may abort a sequence meanwhile.
        removed = [s for s in (*self.waiting, *self.prefilling, *self.running) if gone(s)]
        for sequence in removed:
            if sequence.state is not State.WAITING:
                self._slots.append(sequence.slot)
            sequence.move(State.FINISHED)
        if removed:
            self.waiting = [s for s in self.waiting if s.state is State.WAITING]
            self.prefilling = [s for s in self.prefilling if s.state is State.PREFILLING]
            self.running = [s for s in self.running if s.state is State.RUNNING]
        return removed

    def _takes_another(self) -> bool:
        """Whether the next that waits may enter with those that do."""
        if not self.waiting or not self._slots or len(self.prefilling) >= self._prefill_batch:
            return False
        prompt = self.first.prompt
        tokens = sum(
            len(each.token_ids)
            for each in (prompt, *(sequence.prompt for sequence in self.prefilling))
        )
        return not self._will_be_kept(prompt) and (
            not self.prefilling or tokens <= self._prefill_tokens
        )

    def _will_be_kept(self, prompt: Prompt) -> bool:
        """Whether most of a prompt is being read, for another answer to it or a question about its
        picture. Once the first token is seen, what was read is kept for those that come after."""
        unseen = [s.prompt for s in (*self.prefilling, *self.running) if not s.output_ids]
        shown = {picture.key for each in unseen for picture in each.pictures}
        return any(each is prompt for each in unseen) or any(
            picture.key in shown for picture in prompt.pictures
        )

    def _admit(self, sequence: Sequence) -> None:
        sequence.move(State.PREFILLING)
        sequence.slot = self._slots.pop()
        self.waiting.remove(sequence)
        self.prefilling.append(sequence)


def _rank(sequence: Sequence) -> tuple[float, int]:
    patience = JOB_PATIENCE_S if sequence.priority is Priority.JOB else 0.0
    return sequence.arrived_at + patience, sequence.number
