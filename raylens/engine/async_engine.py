"""Runs an engine in a thread, and streams the deltas of each request to an event loop."""

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
from raylens.engine.sequence import Sequence, make_sequences
from raylens.engine.structured import Grammar, GrammarCompiler

logger = logging.getLogger(__name__)
SWITCH_INTERVAL_S = 0.0005
T = TypeVar("T")


class AsyncEngine:
    """Runs an :class:`Engine` in its own thread. Call its methods from one event loop only.

    ``threads`` is the number of threads that the model computes with; None means torch's default.

    No other thread of the process should compute with several threads. OpenMP keeps a team of
    threads for every thread that has ever computed. If all teams together exceed the number of
    cores, their barriers sleep instead of spinning, which made a decode step a quarter slower.
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
        self._grammar_compiler = GrammarCompiler(model.tokenizer, model.eos_ids, model.vocab_size)
        # One thread, so that schemas are compiled one at a time. A bad schema takes a core for
        # seconds, and other requests need the cores to prepare their pictures.
        self._compiler_pool = ThreadPoolExecutor(1, "raylens-grammar")
        self._threads = threads or torch.get_num_threads()
        self._capacity = limits.max_batch_size + max_waiting
        # Jobs leave half of the queue to interactive requests, which could otherwise find it full
        # for minutes.
        self._job_capacity = limits.max_batch_size + max_waiting // 2
        self._retry_after = retry_after
        self._streams: dict[Sequence, asyncio.Queue[StepOutput]] = {}
        """The queue of each unfinished sequence. Sequences of one request share a queue."""
        self._inbox: list[Sequence] = []
        """Sequences that the thread has not taken yet. Guarded by ``_wake``, like ``_stopping``."""
        self._wake = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="raylens-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        """The exception that ended the thread, or None. Without the thread all requests fail."""
        return self._failure

    @property
    def gauges(self) -> Gauges:
        """The engine's gauges. Sequences that the thread has not taken yet count as waiting."""
        gauges = self._engine.gauges
        return dataclasses.replace(gauges, waiting=gauges.waiting + len(self._inbox))

    @property
    def in_flight(self) -> int:
        """Number of sequences that are waiting or running."""
        return len(self._streams)

    async def generate(self, request: VisionRequest, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the deltas of all ``n`` answers, until each has its finish reason.

        Closing the generator aborts the answers.

        Raises ``Overloaded`` at once if the queue is full. Raises ``InvalidRequest`` if the request
        can never fit in the KV cache, or its JSON schema cannot be followed. Raises
        ``DeadlineExceeded`` and ``ModelFailed``.
        """
        self.check_capacity(request)
        self._engine.check_fit(prompt, request.sampling.max_tokens)
        grammar = await self._compile(request.sampling.json_schema)
        answers = make_sequences(request, prompt, self._model.tokenizer, grammar)
        outputs = self._submit(request, answers)
        try:
            unfinished = len(answers)
            while unfinished:
                output = await outputs.get()
                if output.error is not None:
                    raise output.error
                assert output.delta is not None
                unfinished -= output.delta.finish_reason is not None
                yield output.delta
        finally:
            self._abort(answers)

    async def _compile(self, json_schema: str | None) -> Grammar | None:
        if json_schema is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(
            self._compiler_pool, self._grammar_compiler.compile, json_schema
        )

    def stop(self) -> None:
        """End the thread after the current step. Unfinished requests fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._compiler_pool.shutdown(wait=False)
        self._failure = self._failure or RuntimeError("stop() was called")
        self._fail_all(ModelFailed("the engine has stopped"))

    def check_capacity(self, request: VisionRequest) -> None:
        """Raise the errors that ``generate`` raises at once.

        These are ``InvalidRequest`` if the request has more answers than the engine has room for,
        ``Overloaded`` if it is full now, and ``ModelFailed`` if it has stopped.
        """
        if self._failure is not None:
            raise ModelFailed(f"the engine has stopped: {self._failure!r}")
        self._check_capacity(request.sampling.n, len(self._streams), self._capacity)
        if request.priority is Priority.JOB:
            jobs = sum(sequence.priority is Priority.JOB for sequence in self._streams)
            self._check_capacity(request.sampling.n, jobs, self._job_capacity)

    def _check_capacity(self, answers: int, in_flight: int, capacity: int) -> None:
        if answers > capacity:
            raise InvalidRequest(
                f"n: {answers} answers; the limit is {capacity}", "n", capacity, answers
            )
        if in_flight + answers > capacity:
            raise Overloaded(
                f"{in_flight} sequences run or wait; the limit is {capacity}",
                "model",
                capacity,
                in_flight,
                self._retry_after,
            )

    def _submit(self, request: VisionRequest, answers: list[Sequence]) -> asyncio.Queue[StepOutput]:
        self.check_capacity(request)
        self._loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._streams.update(dict.fromkeys(answers, outputs))
        with self._wake:
            self._inbox.extend(answers)
            self._wake.notify()
        return outputs

    def _abort(self, answers: list[Sequence]) -> None:
        """Have the engine drop these sequences before its next step, unless they have finished."""
        for sequence in answers:
            sequence.aborted = True
            self._streams.pop(sequence, None)

    def _run(self) -> None:
        # OpenMP's number of threads is per thread: a number that was set elsewhere does not apply
        # to this one.
        torch.set_num_threads(self._threads)
        if self._engine.limits.look_ahead:
            # Each launch releases the interpreter's lock for a moment. A thread that prepares
            # pictures may then hold it for the whole switch interval, 5 ms by default, while the
            # GPU is idle.
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            while self._take_inbox():
                outputs = self._engine.step()
                if outputs:
                    self._call_in_loop(self._deliver, outputs)
        except BaseException as error:
            logger.exception("the engine's thread failed")
            self._failure = error
            self._call_in_loop(self._fail_all, ModelFailed(f"the engine has stopped: {error!r}"))

    def _call_in_loop(self, callback: Callable[[T], None], argument: T) -> None:
        """Call back in the event loop, unless it is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)

    def _take_inbox(self) -> bool:
        """Wait for work, and pass it to the scheduler. Return False if the thread must end."""
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
