"""The engine behind one thread: a stream of typed deltas for each request, and abort."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import torch

from raylens.core.errors import InvalidRequest, ModelFailed, Overloaded, RaylensError
from raylens.core.types import Delta, Priority, VisionRequest
from raylens.engine.engine import Engine, StepOutput
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics, Gauges
from raylens.engine.model import Model, Prompt
from raylens.engine.sequence import Sequence, sequences
from raylens.engine.structured import Grammar, Grammars

logger = logging.getLogger(__name__)
SWITCH_INTERVAL_S = 0.0005
T = TypeVar("T")


class AsyncEngine:
    """Runs an :class:`Engine` in a thread of its own. Its methods belong to one event loop.

    ``threads``: how many the model computes with; None leaves it to torch. OpenMP keeps a team for
    every thread that has computed, and where the teams together outnumber the cores their barriers
    sleep instead of spinning, which made a decode step a quarter slower. So the process should
    compute nothing with several threads but here.
    """

    def __init__(
        self,
        model: Model,
        limits: EngineLimits,
        max_waiting: int,
        retry_after: float = 1.0,
        metrics: EngineMetrics | None = None,
        threads: int | None = None,
    ) -> None:
        self._model = model
        self._engine = Engine(model, limits, metrics)
        self._grammars = Grammars(model.tokenizer, model.eos_ids, model.vocabulary)
        # One schema at a time: a bad one takes a processor for seconds, and other requests have
        # pictures to prepare.
        self._compiler = ThreadPoolExecutor(1, "raylens-grammar")
        self._threads = threads or torch.get_num_threads()
        self._capacity = limits.max_batch_size + max_waiting
        # Jobs leave half of the waiting room to interactive requests, which could else find it full
        # for minutes.
        self._job_capacity = limits.max_batch_size + max_waiting // 2
        self._retry_after = retry_after
        self._streams: dict[Sequence, asyncio.Queue[StepOutput]] = {}
        self._inbox: list[Sequence] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="raylens-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, where something did; nothing will be answered any more."""
        return self._failure

    @property
    def gauges(self) -> Gauges:
        """How the engine stands now; sequences that it has not taken yet count as waiting."""
        gauges = self._engine.gauges
        return dataclasses.replace(gauges, waiting=gauges.waiting + len(self._inbox))

    @property
    def in_flight(self) -> int:
        """Sequences that wait or run."""
        return len(self._streams)

    async def generate(self, request: VisionRequest, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """The deltas of all ``n`` answers, until each has its finish reason; closing the iterator
        aborts them.

        Raises ``Overloaded`` at once where the waiting room is full, ``InvalidRequest`` for what
        can't ever fit in the cache and for a JSON schema that can't be followed,
        ``DeadlineExceeded`` and ``ModelFailed``.
        """
        self.check_capacity(request)
        self._engine.check_fit(prompt, request.sampling.max_tokens)
        grammar = await self._grammar(request.sampling.json_schema)
        wanted = sequences(request, prompt, self._model.tokenizer, grammar)
        outputs = self._submit(request, wanted)
        try:
            unfinished = len(wanted)
            while unfinished:
                output = await outputs.get()
                if output.error is not None:
                    raise output.error
                assert output.delta is not None
                unfinished -= output.delta.finish_reason is not None
                yield output.delta
        finally:
            self._abort(wanted)

    async def _grammar(self, schema: str | None) -> Grammar | None:
        if schema is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(
            self._compiler, self._grammars.compile, schema
        )

    def stop(self) -> None:
        """Ends the thread after the step in progress; what is unfinished fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._compiler.shutdown(wait=False)
        self._failure = self._failure or RuntimeError("it was told to")
        self._fail_all(ModelFailed("the engine has stopped"))

    def check_capacity(self, request: VisionRequest) -> None:
        """Raises what ``generate`` would raise at once: ``InvalidRequest`` where so many never fit,
        ``Overloaded``."""
        if self._failure is not None:
            raise ModelFailed(f"the engine has stopped: {self._failure!r}")
        self._check_capacity(request.sampling.n, len(self._streams), self._capacity)
        if request.priority is Priority.JOB:
            jobs = sum(sequence.priority is Priority.JOB for sequence in self._streams)
            self._check_capacity(request.sampling.n, jobs, self._job_capacity)

    def _check_capacity(self, answers: int, taken: int, capacity: int) -> None:
        if answers > capacity:
            raise InvalidRequest(
                f"n: {answers} answers; this model has room for {capacity}", "n", capacity, answers
            )
        if taken + answers > capacity:
            raise Overloaded(
                f"{taken} sequences run or wait; the limit is {capacity}",
                "model",
                capacity,
                taken,
                self._retry_after,
            )

    def _submit(self, request: VisionRequest, wanted: list[Sequence]) -> asyncio.Queue[StepOutput]:
        self.check_capacity(request)
        self._loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._streams.update(dict.fromkeys(wanted, outputs))
        with self._wake:
            self._inbox.extend(wanted)
            self._wake.notify()
        return outputs

    def _abort(self, wanted: list[Sequence]) -> None:
        """The engine drops these before its next step, where it has not finished them."""
        for sequence in wanted:
            sequence.aborted = True
            self._streams.pop(sequence, None)

    def _run(self) -> None:
        # OpenMP counts threads for each thread by itself: what the process has set holds here only
        # once it is set here.
        torch.set_num_threads(self._threads)
        if self._engine.limits.look_ahead:
            # Each launch gives up the interpreter's lock for a moment, and a thread that prepares
            # pictures may then keep it for the whole interval, 5 ms by default, while the GPU has
            # nothing to do.
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            while self._take_inbox():
                outputs = self._engine.step()
                if outputs:
                    self._call(self._deliver, outputs)
        except BaseException as error:
            logger.exception("the engine's thread ends")
            self._failure = error
            self._call(self._fail_all, ModelFailed(f"the engine has stopped: {error!r}"))

    def _call(self, callback: Callable[[T], None], argument: T) -> None:
        """Calls back in the event loop; once that is closed, nobody listens."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)

    def _take_inbox(self) -> bool:
        """Waits for work; False where the thread should end."""
        with self._wake:
            while not (self._inbox or self._engine.has_work or self._stopping):
                self._wake.wait()
            self._engine.scheduler.add(self._inbox)
            self._inbox = []
            return not self._stopping

    def _deliver(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.sequence)
            if stream is not None:
                stream.put_nowait(output)

    def _fail_all(self, error: RaylensError) -> None:
        self._deliver([StepOutput(sequence, error=error) for sequence in self._streams])
