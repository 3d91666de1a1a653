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
from starlette.types import ASGIApp

from raylens.core.config import JobsConfig
from raylens.core.errors import (
    DeadlineExceeded,
    FailureClass,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    RaylensError,
)
from raylens.core.wire import Text, well_formed
from raylens.jobs.files import StoredFile
from raylens.jobs.job import Job
from raylens.jobs.types.base import JobContext, JobInput, JobType
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
MAX_CUSTOM_ID_CHARS = 512
MAX_RETRY_AFTER_S = 3600.0
_OUTPUT_ID = re.compile(rb'"id":"batch_req_[0-9a-f]{32}_([0-9]+)"')
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
_CAPACITY = frozenset({429, 503, 507})
"""HTTP statuses of requests that a lack of capacity stopped."""


class BatchInput(JobInput):
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


class InvalidLine(InvalidRequest):
    """A line of the input file is not a request. ``custom_id`` is the line's, if it has one."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


class BatchExpired(RaylensError):
    code = "batch_expired"
    failure_class = FailureClass.PERMANENT


class OpenAIBatchJob(JobType):
    """Sends each line's request to ``make_app()``, and appends its response to the output file.

    Requests with an error, and lines that are no requests, go to the error file. Both files grow
    while the job runs, and tell the next attempt which lines are done.
    """

    name = JOB_TYPE
    input_model = BatchInput
    retries_pictures = True

    def __init__(self, make_app: Callable[[], ASGIApp], max_timeout_s: float) -> None:
        """``max_timeout_s`` is the longest timeout of a request that the application allows."""
        self._make_app = make_app
        self._max_timeout_s = max_timeout_s
        self._client: httpx.AsyncClient | None = None

    def timeout(self, job: Job) -> float:
        window = self.input_model.model_validate(job.input).completion_window
        return parse_window(window) + LAST_LINES_S

    async def run(self, job_input: BatchInput, context: JobContext) -> dict[str, Any]:
        if self._client is None:
            transport = httpx.ASGITransport(self._make_app(), raise_app_exceptions=False)
            self._client = httpx.AsyncClient(transport=transport, base_url="http://batch")
        timeout_s = min(context.config.attempt_timeout_s, self._max_timeout_s)
        return await _BatchAttempt(job_input, context, self._client, timeout_s).run()


class _BatchAttempt:
    def __init__(
        self,
        job_input: BatchInput,
        context: JobContext,
        client: httpx.AsyncClient,
        request_timeout_s: float,
    ) -> None:
        self._input = job_input
        self._context = context
        self._client = client
        self._request_timeout_s = request_timeout_s
        self._lines: list[bytes] = []
        self._numbers: list[int] = []
        """The lines that are not blank."""
        self._first_lines: dict[str, int] = {}
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
        )

    async def run(self) -> dict[str, Any]:
        await self._read_lines()
        done = await self._output.read_done() | await self._errors.read_done()
        self._first_lines = await asyncio.to_thread(self._index_custom_ids)
        await self._report()
        try:
            await self._runner.run(number for number in self._numbers if number not in done)
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

    async def _read_lines(self) -> None:
        """Read the lines of the input file. Blank ones only count in the numbers of the others.

        Raises ``InvalidRequest`` if the file is gone, empty or too long.
        """
        field = "input_file_id"
        text = await self._context.files.read(self._input.input_file_id)
        self._lines = text.splitlines()
        self._numbers = [number for number, line in enumerate(self._lines) if line.strip()]
        total, limit = len(self._numbers), self._context.config.max_batch_requests
        if not total:
            raise InvalidRequest(f"{field}: the file has no lines, or is gone", field)
        if total > limit:
            message = f"{field}: {total} requests; the limit is {limit}"
            raise InvalidRequest(message, field, limit, total)

    def _index_custom_ids(self) -> dict[str, int]:
        """Return the first line of each id. Later lines with the same id are invalid."""
        first: dict[str, int] = {}
        for number in self._numbers:
            custom_id = self._custom_id_of(number)
            if custom_id is not None:
                first.setdefault(custom_id, number)
        return first

    def _seconds_left(self) -> float:
        """Return the seconds until the end of the batch's window."""
        return self._context.seconds_left - LAST_LINES_S

    async def _request(self, attempt: UnitAttempt) -> tuple[str, httpx.Response]:
        """Return the line's id and the response to its request.

        Raises errors after which another attempt may succeed, ``InvalidLine``, and ``BatchExpired``
        after the end of the window.
        """
        custom_id, body = self._parse(attempt.unit)
        response = await self._send(attempt.unit, body)
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
        return custom_id, response

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

    def _parse(self, number: int) -> tuple[str, dict[str, Any]]:
        """Return the id and the body of a line's request. Raises ``InvalidLine``."""
        try:
            line = json.loads(self._lines[number], parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise InvalidLine("invalid_json_line", f"line {number + 1}: not valid JSON") from None
        prefix = f"line {number + 1}"
        custom_id = line.get("custom_id") if isinstance(line, dict) else None
        try:
            if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
                raise ValueError(f"expected 1 to {MAX_CUSTOM_ID_CHARS} characters")
            well_formed(custom_id)
        except ValueError as error:
            raise InvalidLine("invalid_custom_id", f"{prefix}: custom_id: {error}") from None
        if self._first_lines.get(custom_id, number) != number:
            message = f"{prefix}: custom_id: another line has the same one"
            raise InvalidLine("duplicate_custom_id", message, custom_id)
        if line.get("method") != "POST":
            raise InvalidLine("invalid_method", f"{prefix}: method: expected POST", custom_id)
        if line.get("url") != self._input.endpoint:
            message = f"{prefix}: url: expected the batch's endpoint, {self._input.endpoint}"
            raise InvalidLine("invalid_url", message, custom_id)
        body = line.get("body")
        if not isinstance(body, dict):
            raise InvalidLine("invalid_body", f"{prefix}: body: expected an object", custom_id)
        if body.get("stream"):
            message = f"{prefix}: body.stream: not supported in a batch"
            raise InvalidLine("invalid_body", message, custom_id)
        return custom_id, body

    async def _finish(self, number: int, result: tuple[str, httpx.Response] | RaylensError) -> None:
        if isinstance(result, RaylensError):
            self._add_error(number, self._custom_id_of(number), result.code, result.message)
        else:
            self._add_response(number, *result)
        if self._output.is_due or self._errors.is_due:
            await self._flush()
            await self._report()

    def _add_response(self, number: int, custom_id: str, response: httpx.Response) -> None:
        file = self._output if response.is_success else self._errors
        line = {
            "id": self._line_id(number),
            "custom_id": custom_id,
            "response": {
                "status_code": response.status_code,
                "request_id": f"{self._context.job.id}-{number}",
                "body": response.json(),
            },
            "error": None,
        }
        file.add(number, line)

    def _add_error(self, number: int, custom_id: str | None, code: str, message: str) -> None:
        line = {
            "id": self._line_id(number),
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }
        self._errors.add(number, line)

    def _line_id(self, number: int) -> str:
        return f"batch_req_{self._context.job.id.replace('-', '')}_{number}"

    def _custom_id_of(self, number: int) -> str | None:
        try:
            return self._parse(number)[0]
        except InvalidLine as error:
            return error.custom_id

    async def _flush(self) -> None:
        await self._output.flush()
        await self._errors.flush()

    async def _report(self) -> None:
        counts = self._counts()
        partial = {**counts, "attempts": self._runner.attempts_as_json}
        done = counts["completed"] + counts["failed"]
        await self._context.report(done, counts["total"], partial)

    def _counts(self) -> dict[str, int]:
        """Return the numbers of requests whose results are stored."""
        return {
            "total": len(self._numbers),
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
        self._oldest_at = 0.0
        self.done: set[int] = set()
        """The numbers of the input's lines that have a result here."""
        self.stored_lines = 0

    async def read_done(self) -> set[int]:
        """Return the numbers of the lines whose results earlier attempts have stored."""
        text = await self._context.files.read(self._file_id)
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
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        await self._context.files.append(self._make_file(), b"\n".join(lines) + b"\n", self._job)
        self.stored_lines += len(lines)

    @property
    def _job(self) -> Job:
        return self._context.job

    def _make_file(self) -> StoredFile:
        config: JobsConfig = self._context.config
        now = self._job.created_at
        filename = f"batch_{self._job.id.replace('-', '')}_{self._name}.jsonl"
        expires_at = self._job.deadline + config.result_ttl_s
        return StoredFile(self._file_id, filename, f"batch_{self._name}", now, expires_at)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _message_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the request ended with status {response.status_code}"
