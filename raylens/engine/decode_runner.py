"""Runs decode steps, and isolates the sequence that makes one fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

from raylens.engine.attempt import attempt
from raylens.engine.kv_cache import KVCache
from raylens.engine.model import Model, ModelOutput
from raylens.engine.sampling_runner import SamplingRunner
from raylens.engine.sequence import GenerationSequence

logger = logging.getLogger(__name__)


class DecodeRunner:
    """Decodes one token for each sequence of a batch.

    Calls ``clear_feature_and_prefix_caches`` after a failure, to free memory.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache[GenerationSequence],
        sampling_runner: SamplingRunner,
        clear_feature_and_prefix_caches: Callable[[], None],
    ) -> None:
        self._model = model
        self._kv_cache = cache
        self._sampling_runner = sampling_runner
        self._clear_feature_and_prefix_caches = clear_feature_and_prefix_caches

    def run(
        self, decoding: AbstractSet[GenerationSequence]
    ) -> Iterator[tuple[list[GenerationSequence], ModelOutput | Exception]]:
        """Decode one token for each sequence in ``decoding``.

        Yields the sequences, in the order of their rows, and the output. If the model fails, runs
        it again for each row alone, so that only the sequence that causes the failure fails. In
        that case, yields each sequence alone, with its output or exception.
        """
        sequences, output = self._decode_batch(decoding)
        if not isinstance(output, Exception):
            self._advance(sequences)
            yield sequences, output
            return
        logger.warning(
            "decode failed for a batch of %d; retrying one sequence at a time: %r",
            len(sequences),
            output,
        )
        self._clear_feature_and_prefix_caches()
        for sequence in sequences:
            output = self._decode_alone(sequence)
            if not isinstance(output, Exception):
                self._advance([sequence])
            yield [sequence], output

    def _decode_batch(
        self, decoding: AbstractSet[GenerationSequence]
    ) -> tuple[list[GenerationSequence], ModelOutput | Exception]:
        arenas = [
            (owners, kv_rows)
            for owners, kv_rows in self._kv_cache.arenas_in_use()
            if not decoding.isdisjoint(owners)
        ]
        rows_by_arena = [kv_rows for _, kv_rows in arenas]
        owners = [sequence for arena_owners, _ in arenas for sequence in arena_owners]
        # Rows of other sequences (e.g. in prefill) are computed too and ignored. Their keys and
        # values land past the row's length and are overwritten later.
        row_sequences = [sequence if sequence in decoding else None for sequence in owners]
        positions = [
            0 if sequence is None else sequence.decode_position for sequence in row_sequences
        ]
        selected_rows = [row for row, sequence in enumerate(row_sequences) if sequence is not None]
        output = attempt(
            lambda: self._model.decode(
                self._sampling_runner.last_tokens(row_sequences), positions, rows_by_arena
            ).select(selected_rows)
        )
        return [owners[row] for row in selected_rows], output

    def _decode_alone(self, sequence: GenerationSequence) -> ModelOutput | Exception:
        rows_by_arena = [self._kv_cache.row_of(sequence)]
        positions = [sequence.decode_position]
        return attempt(
            lambda: self._model.decode(
                self._sampling_runner.last_tokens([sequence]), positions, rows_by_arena
            )
        )

    def _advance(self, sequences: list[GenerationSequence]) -> None:
        for sequence in sequences:
            self._kv_cache.advance(sequence)
