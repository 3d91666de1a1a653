"""The types of jobs by name: those that are built in, and those that installed packages add."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from raylens.core.errors import InvalidRequest
from raylens.jobs.types.base import JobType
from raylens.jobs.types.batch import BatchJob
from raylens.jobs.types.chat import ChatJob
from raylens.jobs.types.picture import CaptionJob, DetectJob, PointJob, QueryJob
from raylens.jobs.types.timing import TaskTimingJob

GROUP = "raylens.job_types"
"""The entry point group: each entry is a class without arguments that is a
:class:`raylens.jobs.types.base.JobType`."""


@cache
def job_types() -> Mapping[str, JobType]:
    built_in: list[JobType] = [
        CaptionJob(), QueryJob(), DetectJob(), PointJob(), ChatJob(), BatchJob(), TaskTimingJob()
    ]  # fmt: skip
    added: list[JobType] = [entry.load()() for entry in entry_points(group=GROUP)]
    return {kind.name: kind for kind in (*added, *built_in)}


def job_type(name: str) -> JobType:
    """Raises ``InvalidRequest``, which names the types that there are."""
    types = job_types()
    if name not in types:
        known = ", ".join(types)
        raise InvalidRequest(
            f"job_type: {name[:64]!r} is not known; there are: {known}", "job_type"
        )
    return types[name]
