"""Runs the work of a job: its type, with what that may use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from raylens.core.config import JobsConfig
from raylens.core.errors import InvalidRequest
from raylens.core.fairness import current_client
from raylens.core.validation import explain
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.clock import Clock
from raylens.jobs.dispatcher import JobRunner
from raylens.jobs.failures import UnknownType
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job
from raylens.jobs.job_files import JobFiles
from raylens.jobs.llm import make_llm
from raylens.jobs.progress import Reporter
from raylens.jobs.types.base import ENDLESS_S, JobContext, JobType, LastEvent


class TypedJobRunner(JobRunner):
    """Runs each job by the :class:`raylens.jobs.types.base.JobType` of its name."""

    def __init__(
        self,
        job_types: Mapping[str, JobType],
        inference: InferenceClient,
        blobs: BlobStorage,
        files: JobFiles,
        config: JobsConfig,
        clock: Clock,
    ) -> None:
        self._job_types = job_types
        self._inference = inference
        self._blobs = blobs
        self._files = files
        self._llm = make_llm(config.llm, inference)
        self._config = config
        self._clock = clock

    @property
    def endless_types(self) -> frozenset[str]:
        types = self._job_types.values()
        return frozenset(job_type.name for job_type in types if job_type.is_endless)

    def last_events(self, job: Job) -> tuple[dict[str, Any] | None, list[LastEvent]]:
        job_type = self._job_types.get(job.type)
        return (job.output, []) if job_type is None else job_type.last_events(job)

    def attempt_timeout(self, job: Job) -> float:
        job_type = self._job_types.get(job.type)
        if job_type is not None and (job_type.retries_units or job_type.is_endless):
            return math.inf  # the timeout is that of each picture, or of each question
        return self._config.attempt_timeout_s

    def timeout(self, job: Job) -> float:
        job_type = self._job_types.get(job.type)
        if job_type is not None and job_type.is_endless:
            return ENDLESS_S
        timeout_s = None if job_type is None else job_type.timeout(job)
        return self._config.timeout_s if timeout_s is None else timeout_s

    async def run(self, job: Job, timeout_s: float, reporter: Reporter) -> Any:
        job_type = self._job_types.get(job.type)
        if job_type is None:
            message = f"job_type: {job.type!r} is not installed"
            raise UnknownType(message, "job_type")
        try:
            job_input = job_type.input_model.model_validate(job.input)
        except ValidationError as error:  # another release accepted it
            problem = next(explain(error))
            field = ".".join(("input", *problem.path))
            raise InvalidRequest(f"{field}: {problem.message}", field) from None
        current_client.set(job.client)
        context = JobContext(
            job,
            self._clock.monotonic() + timeout_s,
            self._config,
            self._clock,
            self._inference,
            self._blobs,
            self._files,
            self._llm,
            reporter,
        )
        return await job_type.run(job_input, context)
