"""The picture source that the configuration selects."""

from __future__ import annotations

from importlib.metadata import entry_points

from raylens.core.config import JobsConfig
from raylens.jobs.sources.base import PictureSource
from raylens.jobs.sources.domain import DomainSource
from raylens.jobs.sources.files import FileSource

GROUP = "raylens.picture_sources"
"""The entry-point group of plugins."""


def make_source(jobs: JobsConfig) -> PictureSource | None:
    """Return the source; None if none is configured.

    Raises ``ValueError`` if there is none of this name, and ``ImportError`` if one lacks a package.
    """
    config = jobs.picture_source
    client_id = config.client_id or jobs.webhooks.client_id or "raylens"
    config = config.model_copy(update={"client_id": client_id})
    match config.source:
        case None:
            return None
        case "files":
            return FileSource(config)
        case "domain":
            return DomainSource(config)
        case name:
            plugins = {entry.name: entry for entry in entry_points(group=GROUP)}
            if name not in plugins:
                known = ", ".join(["files", "domain", *plugins])
                raise ValueError(f"unknown picture source {name!r}; known: {known}")
            source: PictureSource = plugins[name].load()(config)
            return source
