"""The job types by name: the built-in ones and those of installed plugins."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from raylens.core.errors import InvalidRequest
from raylens.jobs.types.base import JobInput, JobType
from raylens.jobs.types.batch import BatchJob
from raylens.jobs.types.chat import ChatJob
from raylens.jobs.types.picture import CaptionJob, DetectJob, PointJob, QueryJob
from raylens.jobs.types.timing import TaskTimingJob

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "raylens.job_types"
"""The entry point group of plugins.

Each entry is a :class:`raylens.jobs.types.base.JobType` class whose constructor takes no arguments.
"""


@cache
def load_job_types() -> Mapping[str, JobType]:
    """Return all job types by name. A built-in type wins over a plugin of the same name.

    A plugin that can't be loaded is logged, and its type alone is missing.
    """
    built_in: list[JobType] = [
        CaptionJob(),
        QueryJob(),
        DetectJob(),
        PointJob(),
        ChatJob(),
        BatchJob(),
        TaskTimingJob(),
    ]
    plugins = [
        plugin for entry in entry_points(group=ENTRY_POINT_GROUP) if (plugin := _load(entry))
    ]
    return {job_type.name: job_type for job_type in (*plugins, *built_in)}


def _load(entry: EntryPoint) -> JobType | None:
    try:
        plugin: JobType = entry.load()()
        _check_plugin(plugin)
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        logger.error(
            "the job type %s (%s) can't be loaded: %s: %s",
            entry.name,
            entry.value,
            type(error).__name__,
            error,
        )
        return None
    return plugin


def _check_plugin(plugin: JobType) -> None:
    """Raise ``TypeError`` unless a plugin has what a job type needs."""
    if not isinstance(plugin.name, str) or not plugin.name:
        raise TypeError("name: expected text")
    if not issubclass(plugin.input_model, JobInput):
        raise TypeError("input_model: expected a subclass of JobInput")
    if JobType not in type(plugin).__mro__:
        raise TypeError("expected a subclass of JobType")


def get_job_type(name: str) -> JobType:
    """Return a job type. Raises ``InvalidRequest``, which lists the known types."""
    types = load_job_types()
    if name not in types:
        known = ", ".join(types)
        raise InvalidRequest(f"job_type: unknown type {name[:64]!r}; known: {known}", "job_type")
    return types[name]
