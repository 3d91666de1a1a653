"""The job types by name: the built-in ones and those of installed plugins."""

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

ENTRY_POINT_GROUP = "raylens.job_types"
"""The entry point group of plugins.

Each entry is a :class:`raylens.jobs.types.base.JobType` class whose constructor takes no arguments.
"""


@cache
def load_job_types() -> Mapping[str, JobType]:
    """Return all job types by name. A built-in type wins over a plugin of the same name."""
    built_in: list[JobType] = [
        CaptionJob(),
        QueryJob(),
        DetectJob(),
        PointJob(),
        ChatJob(),
        BatchJob(),
        TaskTimingJob(),
    ]
    plugins: list[JobType] = [entry.load()() for entry in entry_points(group=ENTRY_POINT_GROUP)]
    return {job_type.name: job_type for job_type in (*plugins, *built_in)}


def get_job_type(name: str) -> JobType:
    """Return a job type. Raises ``InvalidRequest``, which lists the known types."""
    types = load_job_types()
    if name not in types:
        known = ", ".join(types)
        raise InvalidRequest(f"job_type: unknown type {name[:64]!r}; known: {known}", "job_type")
    return types[name]
