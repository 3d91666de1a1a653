"""Answers about watches."""

from __future__ import annotations

from typing import Any

from raylens.api.answers.base import Answer
from raylens.api.answers.jobs import JobProblem
from raylens.jobs.job import JobState


class Watch(Answer):
    id: str
    status: JobState
    source: str
    """Without its password."""
    fps: float
    pipeline: dict[str, Any]
    events: list[str]
    webhook_url: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    error: JobProblem | None
    """Why it has failed, or waits."""
    connection: dict[str, Any] | None
    """``status``: connecting, connected or lost; why, and since when."""
    last_result: dict[str, Any] | None
    last_error: dict[str, Any] | None
    """Why the last frame has no result."""
    recent_events: list[dict[str, Any]]
    """The oldest first."""


class WatchPage(Answer):
    watches: list[Watch]
    next_cursor: str | None
