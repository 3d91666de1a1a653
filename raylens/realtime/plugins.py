"""The pipelines by id: the built-in one, and those of installed packages.

Packages bring pipelines in two ways: through the entry-point group ``raylens.pipelines``, whose
entries are pipeline classes, and as plugins of Scope (``daydreamlive/scope``), through its group
``scope`` and its hook ``register_pipelines``. Plugins come with the environment or the image. They
can't be installed while the server runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from pydantic import BaseModel

from raylens import __version__
from raylens.realtime.pipeline import MoondreamPipeline

logger = logging.getLogger(__name__)

GROUP = "raylens.pipelines"
SCOPE = "scope"
"""Scope's name of its entry-point group, and of its pluggy project."""
BUILT_IN = "raylens"
_hookspec = pluggy.HookspecMarker(SCOPE)


class _ScopeHooks:
    """The part of Scope's hooks that concerns pipelines."""

    @_hookspec
    def register_pipelines(self, register: Callable[[Any], None]) -> None:
        """Call ``register`` with each pipeline class."""


@dataclass(frozen=True)
class Pipeline:
    """A kind of pipeline. Sessions make instances of ``pipeline_class``."""

    id: str
    name: str
    description: str
    version: str
    pipeline_class: Any
    config_class: type[BaseModel]
    plugin_name: str

    def schema(self) -> dict[str, Any]:
        """Return the settings as JSON schema, with their hints."""
        return self.config_class.model_json_schema()


@dataclass(frozen=True)
class Plugin:
    """An installed package with pipelines, as its metadata describe it."""

    name: str
    version: str
    author: str = ""
    description: str = ""
    source: str = "environment"
    pipelines: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedPlugin:
    name: str
    error: str


@dataclass
class Registry:
    """Everything that was found."""

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    plugins: list[Plugin] = field(default_factory=list)
    failed: list[FailedPlugin] = field(default_factory=list)

    def add(self, classes: list[Any], plugin: Plugin) -> None:
        """Add a plugin's pipelines. Raises ``ValueError`` and ``TypeError`` if one is none, or if
        its id is taken; then none of them is added."""
        pipelines = [_describe(pipeline_class, plugin.name) for pipeline_class in classes]
        for pipeline in pipelines:
            if pipeline.id in self.pipelines:
                raise ValueError(f"there is a pipeline {pipeline.id!r} already")
        self.pipelines |= {pipeline.id: pipeline for pipeline in pipelines}
        ids = tuple(pipeline.id for pipeline in pipelines)
        self.plugins.append(
            Plugin(
                plugin.name, plugin.version, plugin.author, plugin.description, plugin.source, ids
            )
        )


@cache
def load_registry() -> Registry:
    """Return all pipelines. A plugin that can't be loaded is logged, and listed as failed."""
    registry = Registry()
    registry.add([MoondreamPipeline], Plugin(BUILT_IN, __version__, source="built in"))
    for entry in entry_points(group=GROUP):
        _add_entry(registry, entry, lambda plugin: [plugin])
    for entry in entry_points(group=SCOPE):
        _add_entry(registry, entry, collect_from_scope_plugin)
    return registry


def collect_from_scope_plugin(plugin: Any) -> list[Any]:
    """Return the pipeline classes that a plugin of Scope registers."""
    manager = pluggy.PluginManager(SCOPE)
    manager.add_hookspecs(_ScopeHooks)
    manager.register(plugin)
    classes: list[Any] = []
    manager.hook.register_pipelines(register=classes.append)
    return classes


def _add_entry(
    registry: Registry, entry: EntryPoint, find_classes: Callable[[Any], list[Any]]
) -> None:
    try:
        registry.add(find_classes(entry.load()), _plugin_of(entry))
    except (Exception, SystemExit) as error:  # a plugin may raise anything
        reason = f"{type(error).__name__}: {error}"
        logger.error("the pipelines of %s can't be loaded: %s", entry.value, reason)
        registry.failed.append(FailedPlugin(entry.name, reason))


def _plugin_of(entry: EntryPoint) -> Plugin:
    if entry.dist is None:
        return Plugin(entry.name, "")
    metadata = entry.dist.metadata.json
    author = metadata.get("author") or metadata.get("author_email") or ""
    summary = metadata.get("summary") or ""
    return Plugin(entry.dist.name, entry.dist.version, str(author), str(summary))


def _describe(pipeline_class: Any, plugin_name: str) -> Pipeline:
    """Return what a pipeline class and its settings say of it, in Scope's names.

    Raises ``TypeError`` if the class has no settings, and pydantic's errors if JSON can't describe
    these.
    """
    config_class = pipeline_class.get_config_class()
    if not (isinstance(config_class, type) and issubclass(config_class, BaseModel)):
        raise TypeError("get_config_class: expected a class of pydantic models")
    config_class.model_json_schema()
    pipeline_id = str(getattr(config_class, "pipeline_id", "") or pipeline_class.__name__.lower())
    return Pipeline(
        pipeline_id,
        str(getattr(config_class, "pipeline_name", pipeline_id)),
        str(getattr(config_class, "pipeline_description", "")),
        str(getattr(config_class, "pipeline_version", "1.0.0")),
        pipeline_class,
        config_class,
        plugin_name,
    )
