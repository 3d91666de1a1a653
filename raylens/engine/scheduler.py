"""Decides which sequences run. Uses no tensors.

A client's sequences are admitted in order of arrival; a short sequence never overtakes a long one.
:func:`raylens.core.fairness.fairest` chooses among clients, and between jobs and interactive
requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from raylens.core.fairness import fairest
from raylens.engine.model import Prompt
from raylens.engine.sequence import GenerationSequence, SequenceState
from raylens.engine.service_counters import ServiceCounters


class Scheduler:
    """The sequences that are waiting, in prefill, and running."""

    def __init__(
        self, max_batch_size: int, max_prefill_batch_size: int = 1, max_prefill_tokens: int = 0
    ) -> None:
        self.max_batch_size = max_batch_size
        self.waiting: list[GenerationSequence] = []
        self.prefilling: list[GenerationSequence] = []
        """Their prompts are prefilled together."""
        self.running: list[GenerationSequence] = []
        self._max_prefill_batch_size = max_prefill_batch_size
        self._max_prefill_tokens = max_prefill_tokens
        self._free_slots = list(range(max_batch_size))
        self._service = ServiceCounters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.prefilling or self.running)

    @property
    def next_waiting(self) -> GenerationSequence:
        """The waiting sequence to admit next."""
        return fairest(self.waiting, self._service.totals(self._current))

    @property
    def _current(self) -> tuple[GenerationSequence, ...]:
        return (*self.waiting, *self.prefilling, *self.running)

    def resize(self, max_batch_size: int, max_prefill_batch_size: int) -> None:
        """Change the limits. If more sequences are admitted, they go on, and none joins them."""
        self.max_batch_size = max_batch_size
        self._max_prefill_batch_size = max_prefill_batch_size
        taken = {sequence.slot for sequence in (*self.prefilling, *self.running)}
        self._free_slots = [slot for slot in range(max_batch_size) if slot not in taken]

    def add(self, sequences: Collection[GenerationSequence]) -> None:
        self._service.add(sequences, self._current)
        self.waiting.extend(sequences)

    def admit(self, reserve_row: Callable[[GenerationSequence], bool]) -> list[GenerationSequence]:
        """If no sequence is in prefill, admit waiting ones. Return all sequences in prefill.

        A sequence needs a slot in the batch and a row of the KV cache. ``reserve_row`` takes the
        row and returns True, or returns False if there is no room.
        """
        if not self.prefilling:
            while self._can_admit_next() and reserve_row(self.next_waiting):
                self._admit(self.next_waiting)
        return self.prefilling

    def start_decoding(self, sequences: Iterable[GenerationSequence]) -> None:
        """Move sequences from prefill to running."""
        for sequence in sequences:
            sequence.transition_to(SequenceState.RUNNING)
            self.running.append(sequence)
            self.prefilling.remove(sequence)

    def remove(
        self, should_remove: Callable[[GenerationSequence], bool]
    ) -> list[GenerationSequence]:
        """Finish and return the sequences for which ``should_remove`` returns True."""
        # Once for each sequence, because another thread may set `aborted` between two calls.
        removed = [sequence for sequence in self._current if should_remove(sequence)]
        for sequence in removed:
            self._service.end(sequence)
            was_admitted = sequence.state is not SequenceState.WAITING
            if was_admitted and sequence.slot < self.max_batch_size:
                self._free_slots.append(sequence.slot)
            sequence.transition_to(SequenceState.FINISHED)
        if removed:
            self.waiting = _in_state(self.waiting, SequenceState.WAITING)
            self.prefilling = _in_state(self.prefilling, SequenceState.PREFILLING)
            self.running = _in_state(self.running, SequenceState.RUNNING)
        return removed

    def _can_admit_next(self) -> bool:
        """Return whether the next waiting sequence can join those in prefill."""
        admitted = len(self.prefilling) + len(self.running)
        if not self.waiting or admitted >= self.max_batch_size:
            return False
        if len(self.prefilling) >= self._max_prefill_batch_size:
            return False
        prompt = self.next_waiting.prompt
        if self._should_wait_for_caches(prompt):
            return False
        num_tokens = len(prompt.token_ids)
        num_tokens += sum(len(sequence.prompt.token_ids) for sequence in self.prefilling)
        return not self.prefilling or num_tokens <= self._max_prefill_tokens

    def _should_wait_for_caches(self, prompt: Prompt) -> bool:
        """Return whether an admitted sequence with the same prompt or picture has not yet filled
        the caches.

        Waiting avoids computing the same prompt or picture twice: prompts are cached when the first
        token reaches the host. The answers of one request share one :class:`Prompt`.
        """
        admitted = (*self.prefilling, *self.running)
        uncached = [sequence.prompt for sequence in admitted if not sequence.output_ids]
        if any(uncached_prompt is prompt for uncached_prompt in uncached):
            return True
        picture_keys = {
            picture.key for uncached_prompt in uncached for picture in uncached_prompt.pictures
        }
        return any(picture.key in picture_keys for picture in prompt.pictures)

    def _admit(self, sequence: GenerationSequence) -> None:
        sequence.transition_to(SequenceState.PREFILLING)
        sequence.admitted_at = time.monotonic()
        sequence.slot = self._free_slots.pop()
        self.waiting.remove(sequence)
        self.prefilling.append(sequence)


def _in_state(
    sequences: list[GenerationSequence], state: SequenceState
) -> list[GenerationSequence]:
    return [sequence for sequence in sequences if sequence.state is state]
