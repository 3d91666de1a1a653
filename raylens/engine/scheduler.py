"""Decides which sequences run. Does not import torch.

Sequences are admitted in order of arrival; a small one does not overtake a large one. A job's
sequence is ranked as if it had arrived ``JOB_PATIENCE_S`` later. Interactive requests thus go
first, but jobs are not starved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raylens.core.types import Priority
from raylens.engine.model import Prompt
from raylens.engine.sequence import Sequence, State

JOB_PATIENCE_S = 10.0


class Scheduler:
    """The sequences that are waiting, in prefill, and running."""

    def __init__(
        self, max_batch_size: int, prefill_batch: int = 1, prefill_tokens: int = 0
    ) -> None:
        self.max_batch_size = max_batch_size
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        """Their prompts are prefilled together."""
        self.running: list[Sequence] = []
        self._prefill_batch = prefill_batch
        self._prefill_tokens = prefill_tokens
        self._free_slots = list(range(max_batch_size))

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.prefilling or self.running)

    @property
    def next_waiting(self) -> Sequence:
        """The waiting sequence to admit next."""
        return min(self.waiting, key=_rank)

    def add(self, sequences: Iterable[Sequence]) -> None:
        self.waiting.extend(sequences)

    def admit(self, reserve: Callable[[Sequence], bool]) -> list[Sequence]:
        """Admit the next sequences if none is in prefill, and return those in prefill.

        A sequence needs a slot in the batch, and a row of the KV cache, which ``reserve`` takes if
        there is room.
        """
        if not self.prefilling:
            while self._can_admit_next() and reserve(self.next_waiting):
                self._admit(self.next_waiting)
        return self.prefilling

    def start_decoding(self, sequences: Iterable[Sequence]) -> None:
        """Move sequences from prefill to running."""
        for sequence in sequences:
            sequence.transition_to(State.RUNNING)
            self.running.append(sequence)
            self.prefilling.remove(sequence)

    def remove(self, should_remove: Callable[[Sequence], bool]) -> list[Sequence]:
        """Finish and return the sequences for which ``should_remove`` returns True."""
        # Called once for each sequence: another thread may set `aborted` at any time.
        removed = [
            sequence
            for sequence in (*self.waiting, *self.prefilling, *self.running)
            if should_remove(sequence)
        ]
        for sequence in removed:
            if sequence.state is not State.WAITING:
                self._free_slots.append(sequence.slot)
            sequence.transition_to(State.FINISHED)
        if removed:
            self.waiting = [s for s in self.waiting if s.state is State.WAITING]
            self.prefilling = [s for s in self.prefilling if s.state is State.PREFILLING]
            self.running = [s for s in self.running if s.state is State.RUNNING]
        return removed

    def _can_admit_next(self) -> bool:
        """Return whether the next waiting sequence can join those in prefill."""
        if not self.waiting or not self._free_slots:
            return False
        if len(self.prefilling) >= self._prefill_batch:
            return False
        prompt = self.next_waiting.prompt
        if self._is_in_prefill(prompt):
            return False
        tokens = len(prompt.token_ids)
        tokens += sum(len(sequence.prompt.token_ids) for sequence in self.prefilling)
        return not self.prefilling or tokens <= self._prefill_tokens

    def _is_in_prefill(self, prompt: Prompt) -> bool:
        """Return whether the prompt, or one of its pictures, is in another sequence's prefill.

        If so, it is better to wait. When the other sequence's first token reaches the host, its
        prefix is cached, and need not be computed again.
        """
        prompts = [s.prompt for s in (*self.prefilling, *self.running) if not s.output_ids]
        picture_keys = {picture.key for other in prompts for picture in other.pictures}
        return any(other is prompt for other in prompts) or any(
            picture.key in picture_keys for picture in prompt.pictures
        )

    def _admit(self, sequence: Sequence) -> None:
        sequence.transition_to(State.PREFILLING)
        sequence.slot = self._free_slots.pop()
        self.waiting.remove(sequence)
        self.prefilling.append(sequence)


def _rank(sequence: Sequence) -> tuple[float, int]:
    patience = JOB_PATIENCE_S if sequence.priority is Priority.JOB else 0.0
    return sequence.arrived_at + patience, sequence.arrival_number
