"""Decides which sequences run. Imports no torch.

A batch is taken from what waits when the one before has ended; rows leave it as they finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raylens.engine.sequence import Sequence, State


class Scheduler:
    """``waiting`` and ``running`` sequences; ``running`` stands in the order of the cache's rows."""

    def __init__(self, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def add(self, sequences: Iterable[Sequence]) -> None:
        self.waiting.extend(sequences)

    def admit(self) -> list[Sequence]:
        """The next batch, by priority and then by arrival; nothing while one runs."""
        if self.running or not self.waiting:
            return []
        self.waiting.sort(key=lambda sequence: (sequence.priority, sequence.arrival))
        first = self.waiting[0]
        together = [first] if first.alone else [s for s in self.waiting if not s.alone][: self.max_batch_size]
        for sequence in together:
            sequence.move(State.RUNNING)
        self.waiting = [s for s in self.waiting if s.state is State.WAITING]
        self.running = together
        return together

    def remove(self, gone: Callable[[Sequence], bool]) -> tuple[list[Sequence], list[int]]:
        """Takes out the sequences that are ``gone``: these, and the rows of the cache that stay."""
        # Asked once for each: another thread may abort a sequence meanwhile.
        removed = [s for s in (*self.waiting, *self.running) if gone(s)]
        for sequence in removed:
            sequence.move(State.FINISHED)
        rows = [row for row, s in enumerate(self.running) if s.state is State.RUNNING]
        self.waiting = [s for s in self.waiting if s.state is State.WAITING]
        self.running = [self.running[row] for row in rows]
        return removed, rows

    def isolate(self) -> list[Sequence]:
        """After a failed batch: its sequences run again one by one; one that was alone has failed, and is returned."""
        batch, self.running = self.running, []
        state = State.WAITING if len(batch) > 1 else State.FINISHED
        for sequence in batch:
            sequence.alone = True
            sequence.move(state)
        if state is State.FINISHED:
            return batch
        self.waiting = batch + self.waiting
        return []
