"""Runs an engine in a thread, and streams the deltas of each request to an event loop."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import torch

from raylens.core.errors import (
    InvalidRequest,
    ModelFailed,
    ModelNotLoaded,
    RaylensError,
)
from raylens.core.fairness import check_share
from raylens.core.types import Chat, Delta, Priority, SamplingParams, VisionRequest
from raylens.engine.attempt import attempt
from raylens.engine.engine import Engine, StepOutput
from raylens.engine.grammar import AnswerFormat
from raylens.engine.limits import EngineLimits
from raylens.engine.memory_guard import MemoryGuard
from raylens.engine.metrics import EngineMetrics, Gauges
from raylens.engine.model import Model, Prompt
from raylens.engine.sequence import GenerationSequence, make_sequences
from raylens.engine.structured import CompiledGrammar, GrammarCompiler

logger = logging.getLogger(__name__)
SWITCH_INTERVAL_S = 0.0005
"""Python's thread switch interval with async scheduling, in seconds."""
RESTART_S = 5.0
"""``Retry-After`` of an engine that has stopped, in seconds."""
T = TypeVar("T")


class AsyncEngine:
    """Runs an :class:`Engine` in its own thread. Call its methods from one event loop only.

    ``num_threads`` is torch's intra-op thread count; None means torch's default. No other thread in
    this process should run multi-threaded torch operations: OpenMP keeps a separate thread team for
    every thread that has ever run a parallel region. If the teams together exceed the core count,
    their barriers sleep instead of spinning, which made a decode step 25% slower.
    """

    def __init__(
        self,
        model: Model,
        limits: EngineLimits,
        max_waiting: int,
        retry_after: float = 1.0,
        metrics: EngineMetrics | None = None,
        num_threads: int | None = None,
        memory_guard: MemoryGuard | None = None,
    ) -> None:
        self._model = model
        self._memory_guard = memory_guard
        self._engine = Engine(model, limits, metrics)
        self._grammar_compiler = GrammarCompiler(model.tokenizer, model.eos_ids, model.vocab_size)
        # One thread, so that schemas are compiled one at a time. A schema can occupy a core
        # for seconds, and other requests need the cores to prepare their pictures.
        self._compiler_pool = ThreadPoolExecutor(1, "raylens-grammar")
        self._num_threads = num_threads or torch.get_num_threads()
        self._set_queue(limits.max_batch_size, max_waiting, retry_after)
        self._loop: asyncio.AbstractEventLoop | None = None
        """The callers' event loop; None before the first request."""
        self._output_queues: dict[GenerationSequence, asyncio.Queue[StepOutput]] = {}
        """The queue of each sequence of an open request. Sequences of one request share a queue."""
        self._inbox: list[GenerationSequence] = []
        """Sequences that the thread has not taken yet. ``_condition`` guards this and
        ``_stopping``."""
        self._calls: list[tuple[Callable[[], None], Future[None]]] = []
        """What the thread calls between two steps. ``_condition`` guards it, too."""
        self._condition = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="raylens-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> BaseException | None:
        """Why the engine stopped: the exception that ended its thread, or a ``RuntimeError`` after
        :meth:`stop`. None while it runs. Once it is set, all requests fail."""
        return self._failure

    @property
    def gauges(self) -> Gauges:
        """The engine's gauges. Sequences that the thread has not taken yet count as waiting."""
        gauges = self._engine.gauges
        waiting = gauges.waiting + len(self._inbox)
        return replace(gauges, waiting=waiting, max_waiting=self._max_waiting)

    @property
    def in_flight(self) -> int:
        """Number of sequences of open requests. Finished answers count until their request ends."""
        return len(self._output_queues)

    async def generate(self, request: VisionRequest, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Yield the deltas of all ``n`` answers, until each has its finish reason.

        Closing the generator aborts the answers.

        Raises ``Overloaded`` if the engine is full, which is checked before the schema is compiled
        and again afterwards. Raises ``InvalidRequest`` if the request can never fit in the KV
        cache, or its JSON schema is invalid or unsupported. Raises ``DeadlineExceeded``,
        ``ModelNotLoaded`` if the engine has stopped, and ``ModelFailed``, also if the engine stops
        because of an error: this request may be its cause.
        """
        self.check_capacity(request)
        self._check_token_ids(request.sampling)
        request = self._engine.fit_to_memory(request, prompt)
        grammar = await self._compile(request, prompt)
        sequences = make_sequences(
            request,
            prompt,
            self._model.tokenizer,
            grammar and grammar.state,
            self._model.eos_ids,
        )
        outputs = self._submit(request, sequences)
        warnings = grammar.warnings if grammar else ()
        try:
            num_unfinished = len(sequences)
            while num_unfinished:
                output = await outputs.get()
                if output.error is not None:
                    raise output.error
                assert output.delta is not None
                num_unfinished -= output.delta.finish_reason is not None
                if warnings:
                    yield replace(output.delta, warnings=warnings)
                    warnings = ()
                else:
                    yield output.delta
        finally:
            self._abort(sequences)

    async def clear_caches(self) -> None:
        """Empty the caches of features and prefixes, between two steps.

        Raises ``ModelNotLoaded`` if the engine has stopped.
        """
        await self._call_between_steps(self._engine.clear_caches)

    async def change_limits(
        self, max_batch_size: int, max_waiting: int, max_prefill_slice_s: float, retry_after: float
    ) -> None:
        """Change these limits. What is running or waiting goes on.

        Raises ``ModelNotLoaded`` if the engine has stopped.
        """
        await self._call_between_steps(
            lambda: self._engine.change_limits(max_batch_size, max_prefill_slice_s)
        )
        self._set_queue(max_batch_size, max_waiting, retry_after)

    def _set_queue(self, max_batch_size: int, max_waiting: int, retry_after: float) -> None:
        self._max_waiting = max_waiting
        self._capacity = max_batch_size + max_waiting
        # Jobs may fill only half of the queue; otherwise interactive requests could find it full
        # for minutes.
        self._job_capacity = max_batch_size + max_waiting // 2
        self._retry_after = retry_after

    async def _call_between_steps(self, function: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        done: Future[None] = Future()
        with self._condition:
            if self._failure is not None or self._stopping:
                raise _engine_stopped("the engine has stopped")
            self._calls.append((function, done))
            self._condition.notify()
        await asyncio.wrap_future(done)

    def check_capacity(self, request: VisionRequest) -> None:
        """Raise if the engine can't accept the request now. Can be called before the prompt is
        prepared.

        Raises ``InvalidRequest`` if the request has more answers than the engine can hold,
        ``Overloaded`` if the engine is full now, and ``ModelNotLoaded`` if it has stopped.
        """
        if self._failure is not None:
            raise _engine_stopped(f"the engine has stopped: {self._failure!r}")
        self._check_share(request, "answers are in flight", self._output_queues, self._capacity)
        if request.priority is Priority.JOB:
            of_jobs = [entry for entry in self._output_queues if entry.priority is Priority.JOB]
            self._check_share(request, "job answers are in flight", of_jobs, self._job_capacity)

    def stop(self) -> None:
        """End the thread after the current step. Unfinished requests fail."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join()
        self._compiler_pool.shutdown(wait=False)
        self._failure = self._failure or RuntimeError("stop() was called")
        self._fail_all(_engine_stopped("the engine has stopped"))

    def _check_share(
        self,
        request: VisionRequest,
        what: str,
        in_flight: Collection[GenerationSequence],
        capacity: int,
    ) -> None:
        """Raise if the request's client may not have its answers among those ``in_flight``.

        ``what`` says so in the message.
        """
        answers = request.sampling.n
        if answers > capacity:
            raise InvalidRequest(
                f"n: {answers} answers requested; the limit is {capacity}", "n", capacity, answers
            )
        held = sum(sequence.client == request.client for sequence in in_flight)
        check_share(what, answers, held, len(in_flight), capacity, self._retry_after, "model")

    async def _compile(self, request: VisionRequest, prompt: Prompt) -> CompiledGrammar | None:
        json_schema = request.sampling.json_schema
        tools = request.tools
        if json_schema is None and tools is None:
            return None
        return await asyncio.get_running_loop().run_in_executor(
            self._compiler_pool,
            self._grammar_compiler.compile,
            AnswerFormat(json_schema, tools, prompt.tool_call_style, prompt.leading_space),
            request.task.answer_start if isinstance(request.task, Chat) else "",
        )

    def _check_token_ids(self, params: SamplingParams) -> None:
        """Raise ``InvalidRequest`` if the request names a token that the model doesn't have."""
        named = [("stop_token_ids", token) for token in params.stop_token_ids]
        named += [("logit_bias", token) for token, _ in params.logit_bias]
        limit = self._model.vocab_size - 1
        for field, token in named:
            if token > limit:
                raise InvalidRequest(
                    f"{field}: token {token}; this model's last one is {limit}", field, limit, token
                )

    def _submit(
        self, request: VisionRequest, sequences: list[GenerationSequence]
    ) -> asyncio.Queue[StepOutput]:
        # Again: other requests may have been submitted while the schema was compiled.
        self.check_capacity(request)
        self._loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[StepOutput] = asyncio.Queue()
        self._output_queues.update(dict.fromkeys(sequences, outputs))
        with self._condition:
            self._inbox.extend(sequences)
            self._condition.notify()
        return outputs

    def _abort(self, sequences: list[GenerationSequence]) -> None:
        """Make the engine drop these sequences before its next step, unless they have finished."""
        for sequence in sequences:
            sequence.aborted = True
            self._output_queues.pop(sequence, None)

    def _run(self) -> None:
        # OpenMP's thread count is a per-thread setting, so a value set in another thread does not
        # apply here.
        torch.set_num_threads(self._num_threads)
        if self._engine.limits.async_scheduling:
            # Each kernel launch briefly releases the GIL. A thread that prepares pictures may then
            # hold it for the whole switch interval, 5 ms by default, while the GPU is idle.
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            while self._take_inbox():
                outputs = self._engine.step()
                if outputs:
                    self._call_in_loop(self._deliver, outputs)
                if self._memory_guard is not None:
                    self._memory_guard.check(self._engine)
        except BaseException as error:
            logger.exception("the engine's thread failed")
            self._failure = error
            self._call_in_loop(self._fail_all, ModelFailed(f"the engine has stopped: {error!r}"))

    def _take_inbox(self) -> bool:
        """Wait for work, and pass it to the scheduler. Return False if the thread must end."""
        with self._condition:
            while not (self._inbox or self._calls or self._engine.has_work or self._stopping):
                self._condition.wait()
            self._engine.scheduler.add(self._inbox)
            self._inbox = []
            calls = list(self._calls)
        for call in calls:
            function, done = call
            failure = attempt(function)
            self._calls.remove(call)
            if not done.set_running_or_notify_cancel():
                continue
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)
        return not self._stopping

    def _call_in_loop(self, callback: Callable[[T], None], argument: T) -> None:
        """Schedule the callback on the event loop; do nothing if the loop is closed."""
        if self._loop is None:
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, argument)

    def _deliver(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            queue = self._output_queues.get(output.sequence)
            if queue is not None:
                queue.put_nowait(output)

    def _fail_all(self, error: RaylensError) -> None:
        for _, done in self._calls:
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
        self._calls.clear()
        self._deliver([StepOutput(sequence, error=error) for sequence in self._output_queues])


def _engine_stopped(message: str) -> RaylensError:
    """Return the error for a request that another replica, or the next one, can answer."""
    return ModelNotLoaded(message, "model", None, None, RESTART_S)
