"""Runs decode steps, and isolates the sequence that breaks one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from raylens.engine.attempt import attempt
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import Model, ModelOutput
from raylens.engine.sampling_runner import SamplingRunner
from raylens.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class DecodeRunner:
    """Decodes one token for each sequence of a batch.

    Calls ``clear_caches`` after a failure, to free memory.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache[Sequence],
        sampling_runner: SamplingRunner,
        clear_caches: Callable[[], None],
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampling_runner = sampling_runner
        self._clear_caches = clear_caches

    def run(
        self, decoding: AbstractSet[Sequence]
    ) -> Iterator[tuple[list[Sequence], ModelOutput | Exception]]:
        """Run a decode step. Yield the sequences, in the order of their rows, and the output.

        If the model fails, it is run again for each row alone, so that only the sequence that
        breaks it fails. Each sequence is then yielded alone, with its output or exception.
        """
        sequences, output = self._decode_batch(decoding)
        if not isinstance(output, Exception):
            self._advance(sequences)
            yield sequences, output
            return
        logger.warning(
            "decoding a batch of %d failed and is retried row by row: %r", len(sequences), output
        )
        self._clear_caches()
        for sequence in sequences:
            output = self._decode_alone(sequence)
            if not isinstance(output, Exception):
                self._advance([sequence])
            yield [sequence], output

    def _decode_batch(
        self, decoding: AbstractSet[Sequence]
    ) -> tuple[list[Sequence], ModelOutput | Exception]:
        groups = [group for group in self._cache.groups() if not decoding.isdisjoint(group[0])]
        groups_rows = [rows for _, rows in groups]
        owners = [sequence for group_owners, _ in groups for sequence in group_owners]
        # Rows of other sequences, such as those in prefill, are decoded too, without effect. Their
        # keys and values are written after the row's length, and overwritten later.
        inputs = [sequence if sequence in decoding else None for sequence in owners]
        positions = [0 if sequence is None else sequence.next_position for sequence in inputs]
        decoded_rows = [row for row, sequence in enumerate(inputs) if sequence is not None]
        output = attempt(
            lambda: self._model.decode(
                self._sampling_runner.newest_tokens(inputs), positions, groups_rows
            ).select(decoded_rows)
        )
        return [owners[row] for row in decoded_rows], output

    def _decode_alone(self, sequence: Sequence) -> ModelOutput | Exception:
        rows = [self._cache.row(sequence)]
        positions = [sequence.next_position]
        return attempt(
            lambda: self._model.decode(
                self._sampling_runner.newest_tokens([sequence]), positions, rows
            )
        )

    def _advance(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._cache.advance(sequence)
