"""The job that runs a file of OpenAI requests: JSON lines in, JSON lines out.

Format: OpenAI's API reference, "Batch", request input and output objects.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import httpx

from raylens.core.config import AppConfig, JobsConfig
from raylens.core.errors import (
    DeadlineExceeded,
    FailureClass,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    RaylensError,
)
from raylens.core.wire import Text
from raylens.jobs.blobs import BlobMissing
from raylens.jobs.files import StoredFile
from raylens.jobs.job import Job
from raylens.jobs.types.base import JobContext, JobInput, JobType
from raylens.jobs.types.openai_batch_lines import BatchLines
from raylens.jobs.types.units import UnitAttempt, UnitRunner
from raylens.net.retry_after import parse_retry_after

JOB_TYPE = "openai_batch"
ENDPOINTS = ("/v1/chat/completions",)
"""Routes that a batch may call."""
FLUSH_LINES = 64
"""Lines that are stored together."""
FLUSH_PERIOD_S = 2.0
"""Longest time that a line waits to be stored while others follow, in seconds."""
LAST_LINES_S = 600.0
"""Time from the end of the batch's window to its job's deadline, in seconds. It is for the error
file: a line for each request that was not done."""
MAX_WINDOW_S = 7 * 86_400
MAX_RETRY_AFTER_S = 3600.0
_OUTPUT_ID = re.compile(rb'"id":"batch_req_[0-9a-f]{32}_([0-9]+)"')
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
_CAPACITY = frozenset({429, 503, 507})
"""HTTP statuses of requests that a lack of capacity stopped."""


class OpenAIBatchInput(JobInput):
    input_file_id: Text
    endpoint: Text
    completion_window: Text = "24h"


def output_file_id(job: Job) -> str:
    return f"file-{job.id.replace('-', '')}-output"


def error_file_id(job: Job) -> str:
    return f"file-{job.id.replace('-', '')}-error"


def parse_window(window: str) -> int:
    """Return the seconds of a window such as ``24h``. Raises ``InvalidRequest``."""
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_WINDOW_S:
        raise InvalidRequest(
            "completion_window: expected a time such as 24h; the limit is 7d",
            "completion_window",
        )
    return seconds


class BatchExpired(RaylensError):
    code = "batch_expired"
    failure_class = FailureClass.PERMANENT


class OpenAIBatchJob(JobType):
    """Sends each line's request to the application behind
    ``make_transport(client)``, and appends its response to the output file.

    Requests with an error, and lines that are no requests, go to the error file. Both files grow
    while the job runs, and tell the next attempt which lines are done.
    """

    name = JOB_TYPE
    input_model = OpenAIBatchInput
    retries_units = True

    def __init__(
        self, make_transport: Callable[[str], httpx.AsyncBaseTransport], config: AppConfig
    ) -> None:
        """``config`` is the application's."""
        self._make_transport = make_transport
        self._config = config

    def timeout(self, job: Job) -> float:
        window = self.input_model.model_validate(job.input).completion_window
        return parse_window(window) + LAST_LINES_S

    async def run(self, job_input: OpenAIBatchInput, context: JobContext) -> dict[str, Any]:
        transport = self._make_transport(context.job.client)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", trust_env=False
        ) as client:
            return await _BatchAttempt(job_input, context, client, self._config).run()


class _BatchAttempt:
    def __init__(
        self,
        job_input: OpenAIBatchInput,
        context: JobContext,
        client: httpx.AsyncClient,
        config: AppConfig,
    ) -> None:
        self._input = job_input
        self._context = context
        self._client = client
        self._limits = config.limits
        self._request_timeout_s = min(
            context.config.attempt_timeout_s, config.defaults.max_timeout_s
        )
        self._lines = BatchLines(b"", "", 0)
        self._has_expired = False
        self._output = _ResultFile(output_file_id(context.job), "output", context)
        self._errors = _ResultFile(error_file_id(context.job), "error", context)
        partial = context.job.output or {}
        self._runner = UnitRunner(
            context,
            context.config.batch_concurrency,
            partial.get("attempts", {}),
            self._request,
            self._finish,
            self._report,
            lambda number: self._lines[number].model,
        )

    async def run(self) -> dict[str, Any]:
        self._lines = await self._read_lines()
        done = await self._output.read_done() | await self._errors.read_done()
        await self._report()
        try:
            await self._runner.run(number for number in self._lines.numbers if number not in done)
        except RaylensError as error:  # a lack of capacity
            await self._pause(error)
            raise
        await self._flush()
        await self._report()
        return self._counts() | ({"expired": True} if self._has_expired else {})

    async def _pause(self, error: RaylensError) -> None:
        """Store the results so far, before ``error`` ends the attempt.

        The next attempt must start by the end of the window, if only to fill the error file.
        """
        await self._flush()
        await self._report()
        if error.retry_after is not None:
            error.retry_after = min(error.retry_after, max(0.0, self._seconds_left()))

    async def _read_lines(self) -> BatchLines:
        """Raises ``InvalidRequest`` if the file is deleted, empty or too long."""
        field = "input_file_id"
        try:
            text = await self._context.files.read(self._input.input_file_id)
        except BlobMissing:
            raise InvalidRequest(f"{field}: a part of the file is missing", field) from None
        if not text:
            raise InvalidRequest(f"{field}: the file has been deleted", field)
        lines = await asyncio.to_thread(
            BatchLines, text, self._input.endpoint, self._limits.max_body_bytes
        )
        limit = self._context.config.max_batch_requests
        if not lines:
            raise InvalidRequest(f"{field}: the file has no lines", field)
        if len(lines) > limit:
            message = f"{field}: {len(lines)} requests; the limit is {limit}"
            raise InvalidRequest(message, field, limit, len(lines))
        return lines

    def _seconds_left(self) -> float:
        """Return the seconds until the end of the batch's window."""
        return self._context.seconds_left - LAST_LINES_S

    async def _request(self, attempt: UnitAttempt) -> httpx.Response:
        """Return the response to a line's request.

        Raises errors after which another attempt may succeed, ``InvalidLine``, and ``BatchExpired``
        after the end of the window.
        """
        response = await self._send(attempt.unit, self._lines.body(attempt.unit))
        if response.status_code in _CAPACITY:
            raise Overloaded(
                _message_of(response),
                "model",
                retry_after=parse_retry_after(
                    response.headers.get("retry-after"), MAX_RETRY_AFTER_S
                ),
            )
        if response.status_code >= 500 and not attempt.is_last:
            error_type = DeadlineExceeded if response.status_code == 504 else ModelFailed
            raise error_type(_message_of(response))
        return response

    async def _send(self, number: int, body: dict[str, Any]) -> httpx.Response:
        """Send a line's request. Raises ``BatchExpired``."""
        seconds_left = self._seconds_left()
        try:
            if seconds_left <= 0:
                raise TimeoutError
            async with asyncio.timeout(seconds_left):
                return await self._client.post(
                    self._input.endpoint,
                    content=json.dumps(body),
                    headers={
                        "Content-Type": "application/json",
                        "X-Request-ID": f"{self._context.job.id}-{number}",
                        "X-Request-Timeout": f"{self._request_timeout_s:.3f}",
                    },
                    timeout=None,
                )
        except TimeoutError:
            self._has_expired = True
            message = "the request was not done before the batch expired"
            raise BatchExpired(message) from None

    async def _finish(self, number: int, result: httpx.Response | RaylensError) -> None:
        if isinstance(result, RaylensError):
            self._add_error(number, result)
        else:
            self._add_response(number, result)
        if self._output.is_due or self._errors.is_due:
            await self._flush()
            await self._report()

    def _add_response(self, number: int, response: httpx.Response) -> None:
        file = self._output if response.is_success else self._errors
        line = {
            "id": self._line_id(number),
            "custom_id": self._lines[number].custom_id,
            "response": {
                "status_code": response.status_code,
                "request_id": f"{self._context.job.id}-{number}",
                "body": response.json(),
            },
            "error": None,
        }
        file.add(number, line)

    def _add_error(self, number: int, error: RaylensError) -> None:
        line = {
            "id": self._line_id(number),
            "custom_id": self._lines[number].custom_id,
            "response": None,
            "error": {"code": error.code, "message": error.message},
        }
        self._errors.add(number, line)

    def _line_id(self, number: int) -> str:
        return f"batch_req_{self._context.job.id.replace('-', '')}_{number}"

    async def _flush(self) -> None:
        await self._output.flush()
        await self._errors.flush()

    async def _report(self) -> None:
        counts = self._counts()
        partial = {**counts, "attempts": self._runner.attempts_as_json}
        done = counts["completed"] + counts["failed"]
        await self._context.report(done, counts["total"], partial, at_once=True)

    def _counts(self) -> dict[str, int]:
        """Return the numbers of requests whose results are stored."""
        return {
            "total": len(self._lines),
            "completed": self._output.stored_lines,
            "failed": self._errors.stored_lines,
        }


class _ResultFile:
    """A file of results that grows by some lines at a time."""

    def __init__(self, file_id: str, name: str, context: JobContext) -> None:
        self._file_id = file_id
        self._name = name
        self._context = context
        self._lines: list[bytes] = []
        self._lock = asyncio.Lock()
        self._oldest_at = 0.0
        self.done: set[int] = set()
        """The numbers of the input's lines that have a result here."""
        self.stored_lines = 0

    async def read_done(self) -> set[int]:
        """Return the numbers of the lines whose results earlier attempts have stored."""
        text = await self._context.files.read(self._file_id, skip_missing=True)
        self.done = {int(match[1]) for match in _OUTPUT_ID.finditer(text)}
        self.stored_lines = len(self.done)
        return self.done

    def add(self, number: int, line: dict[str, Any]) -> None:
        if not self._lines:
            self._oldest_at = self._context.clock.monotonic()
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        # Half a surrogate pair, which UTF-8 can't represent, stays an escape sequence.
        self._lines.append(text.encode(errors="backslashreplace"))
        self.done.add(number)

    @property
    def is_due(self) -> bool:
        """Whether the lines should be stored now."""
        age_s = self._context.clock.monotonic() - self._oldest_at
        return len(self._lines) >= FLUSH_LINES or (bool(self._lines) and age_s > FLUSH_PERIOD_S)

    async def flush(self) -> None:
        """Store the lines. Raises as :meth:`raylens.jobs.job_files.JobFiles.append` does."""
        async with self._lock:  # each append builds on the one before
            if not self._lines:
                return
            lines, self._lines = self._lines, []
            data = b"\n".join(lines) + b"\n"
            await self._context.files.append(self._make_file(), data, self._job)
            self.stored_lines += len(lines)

    @property
    def _job(self) -> Job:
        return self._context.job

    def _make_file(self) -> StoredFile:
        config: JobsConfig = self._context.config
        now = self._job.created_at
        filename = f"batch_{self._job.id.replace('-', '')}_{self._name}.jsonl"
        expires_at = self._job.deadline + config.result_ttl_s
        owner, client = self._job.owner, self._job.client
        purpose = f"batch_{self._name}"
        return StoredFile(
            self._file_id, filename, purpose, now, expires_at, owner=owner, client=client
        )


def _message_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the request ended with status {response.status_code}"
