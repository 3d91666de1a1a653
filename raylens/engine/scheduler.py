"""Decides which sequences run. Imports no torch.

Requests go in order of arrival, and none overtakes another because it is small. A job's counts as having arrived
``JOB_PATIENCE_S`` later than it did: interactive requests go before it, but not for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raylens.engine.sequence import Sequence, State
from raylens.types import Priority

JOB_PATIENCE_S = 10.0


class Scheduler:
    """Sequences that wait, the one that enters, and those that run."""

    def __init__(self, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self.waiting: list[Sequence] = []
        self.entering: Sequence | None = None
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.entering or self.running)

    @property
    def first(self) -> Sequence:
        """The next that is to enter, of those that wait."""
        return min(self.waiting, key=_rank)

    def add(self, sequences: Iterable[Sequence]) -> None:
        self.waiting.extend(sequences)

    def admit(self, reserve: Callable[[Sequence], bool]) -> Sequence | None:
        """The sequence that is to enter: the one that does, or the next for which there is a place in the batch and,
        says ``reserve``, in the cache."""
        if self.entering is None and self.waiting and len(self.running) < self.max_batch_size:
            first = self.first
            if reserve(first):
                first.move(State.ENTERING)
                self.waiting.remove(first)
                self.entering = first
        return self.entering

    def entered(self) -> None:
        """The prompt is read: the sequence runs."""
        assert self.entering is not None
        self.entering.move(State.RUNNING)
        self.running.append(self.entering)
        self.entering = None

    def remove(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Takes out the sequences that are ``gone``."""
        entering = [] if self.entering is None else [self.entering]
        # Asked once for each: another thread may abort a sequence meanwhile.
        removed = [s for s in (*self.waiting, *entering, *self.running) if gone(s)]
        for sequence in removed:
            sequence.move(State.FINISHED)
        if removed:
            self.waiting = [s for s in self.waiting if s.state is State.WAITING]
            self.running = [s for s in self.running if s.state is State.RUNNING]
            if self.entering in removed:
                self.entering = None
        return removed


def _rank(sequence: Sequence) -> tuple[float, int]:
    patience = JOB_PATIENCE_S if sequence.priority is Priority.JOB else 0.0
    return sequence.arrived_at + patience, sequence.number
