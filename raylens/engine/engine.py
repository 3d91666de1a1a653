"""``step()``: schedule, run, postprocess."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raylens.engine.model import Model
from raylens.engine.scheduler import Scheduler
from raylens.engine.sequence import Sequence
from raylens.errors import DeadlineExceeded, ModelFailed, RaylensError
from raylens.types import Delta

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """What a step made for one sequence: a delta, or the error that ended it."""

    sequence: Sequence
    delta: Delta | None = None
    error: RaylensError | None = None


class Engine:
    """Runs sequences through a model in batches. Not thread-safe: one thread owns it."""

    def __init__(self, model: Model, max_batch_size: int) -> None:
        self.model = model
        self.scheduler = Scheduler(max_batch_size)
        self._cache: Any = None
        self._rows: list[int] | None = None
        """The cache's rows that still run, where some have left since the last step."""

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Output]:
        """One round for the whole batch: at most one prefill or one decode step."""
        outputs = self._drop_dead()
        admitted = self.scheduler.admit()
        if not self.scheduler.running:
            return outputs
        try:
            logits = self._prefill(admitted) if admitted else self._decode()
        except Exception as error:
            return outputs + self._fail(error)
        return outputs + self._postprocess(logits)

    def _drop_dead(self) -> list[Output]:
        """Ends what was aborted, and what is past its deadline."""
        now = time.time()
        gone = self._leave(lambda s: s.aborted or s.deadline <= now)
        return [
            Output(sequence, error=DeadlineExceeded("the deadline passed before the answer was complete", "deadline"))
            for sequence in gone
            if not sequence.aborted
        ]

    def _prefill(self, admitted: list[Sequence]) -> Tensor:
        """Reads each distinct prompt once; answers that share one get a row each afterwards."""
        distinct: dict[tuple[int, tuple[int, ...]], int] = {}
        rows = [distinct.setdefault((id(s.prompt), tuple(s.output_ids)), len(distinct)) for s in admitted]
        firsts = [admitted[rows.index(row)] for row in range(len(distinct))]
        self._rows = None
        logits, self._cache = self.model.prefill([s.prompt for s in firsts], [s.output_ids for s in firsts])
        if len(distinct) < len(admitted):
            self.model.select(self._cache, rows)
            logits = logits[rows]
        return logits

    def _decode(self) -> Tensor:
        if self._rows is not None:
            self.model.select(self._cache, self._rows)
            self._rows = None
        return self.model.decode([s.output_ids[-1] for s in self.scheduler.running], self._cache)

    def _postprocess(self, logits: Tensor) -> list[Output]:
        """Chooses each row's next token and ends the rows that are complete, or that can't go on."""
        outputs = [self._advance(sequence, logits[row]) for row, sequence in enumerate(self.scheduler.running)]
        failed = {output.sequence for output in outputs if output.error is not None}
        self._leave(lambda s: s.finish_reason is not None or s in failed)
        return [output for output in outputs if output.error is not None or _says_something(output.delta)]

    def _advance(self, sequence: Sequence, logits: Tensor) -> Output:
        try:
            token_id = sequence.sampler.choose(logits)
            text = sequence.append(token_id, self.model.eos_ids, self.model.max_length)
        except Exception as error:
            return self._failed(sequence, error)
        reason = sequence.finish_reason
        return Output(sequence, Delta(text, sequence.index, reason, sequence.usage if reason else None))

    def _leave(self, gone: Callable[[Sequence], bool]) -> list[Sequence]:
        """Takes sequences out; their rows leave the cache before the next decode step."""
        before = len(self.scheduler.running)
        removed, kept = self.scheduler.remove(gone)
        if not kept:
            self._cache = self._rows = None
        elif len(kept) < before:
            self._rows = kept if self._rows is None else [self._rows[row] for row in kept]
        return removed

    def _fail(self, error: Exception) -> list[Output]:
        """A batch that failed runs again one by one, so that only the request that breaks the model fails."""
        self._cache = self._rows = None
        logger.warning("a batch of %d failed: %r", len(self.scheduler.running), error)
        return [self._failed(sequence, error) for sequence in self.scheduler.isolate()]

    def _failed(self, sequence: Sequence, error: Exception) -> Output:
        logger.error("the model failed on request %s", sequence.request_id, exc_info=error)
        return Output(sequence, error=ModelFailed(f"the model failed on this request: {type(error).__name__}"))


def _says_something(delta: Delta | None) -> bool:
    return delta is not None and bool(delta.text or delta.finish_reason)
