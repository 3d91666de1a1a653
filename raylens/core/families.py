"""The registry of model families: what raylens knows about a family before it loads a checkpoint.

A package adds families through the entry point group ``raylens.families``; each entry is a
:class:`Family`. This module and the families' descriptions import neither torch nor the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

GROUP = "raylens.families"
BUILT_IN = (
    "models.moondream.family:FAMILY",
    "models.smolvlm.family:FAMILY",
    "models.qwen2_5_vl.family:FAMILY",
)
RuntimeName = Literal["engine", "photon", "cloud", "openai"]


class FamilySettings(BaseModel):
    """Settings that a family adds to its models' configuration. The base class adds none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine_only: ClassVar[frozenset[str]] = frozenset()
    """The settings that mean nothing to a runtime other than ``engine``."""


SettingsT = TypeVar("SettingsT", bound=FamilySettings)
NO_SETTINGS = FamilySettings()


@dataclass(frozen=True)
class HubFiles:
    """Files of a repository on the Hugging Face hub, which a loader downloads."""

    patterns: tuple[str, ...]
    """Of the files' names, with ``*`` for anything; files in folders don't count."""
    repository: str | None = None
    """Unset means the checkpoint's own."""
    revision_setting: str | None = None
    """The family's setting with the revision; unset means the checkpoint's revision."""


PRETRAINED = HubFiles(("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors"))
"""What transformers loads: configurations, templates, tokenizer and weights."""


@dataclass(frozen=True)
class Family:
    """A model family.

    Functions and objects that need torch are named ``module:attribute``, and are imported where
    they are used.
    """

    name: str
    load: str
    """Function from a checkpoint (a hub id or a folder) and :class:`models.options.LoadOptions` to
    a :class:`raylens.engine.model.Model`."""
    tasks: frozenset[str]
    """Names of the tasks that its checkpoints can do, and perhaps
    :data:`raylens.core.types.REASONING`."""
    settings: type[FamilySettings] = FamilySettings
    runtimes: frozenset[RuntimeName] = frozenset({"engine", "openai"})
    aliases: tuple[str, ...] = ()
    """Names by which clients of other servers ask for a model of this family."""
    pocket: Path | None = None
    """The folder of the bundled checkpoint ``pocket``."""
    model_types: tuple[str, ...] = ()
    """Values of ``model_type`` in the checkpoints' ``config.json``."""
    file_suffixes: tuple[str, ...] = ()
    """Endings of the names of checkpoints that are single files."""
    default_revisions: Mapping[str, str] = field(default_factory=dict)
    """Revisions by hub id, for repositories whose newest revision has another architecture."""
    hub_files: tuple[HubFiles, ...] = (PRETRAINED,)
    """What ``raylens pull`` fetches for a checkpoint with a hub id."""
    verifier: str | None = None
    """Function that ``raylens verify`` calls: see :class:`models.verify.reference.Verifier`."""
    footprint: str | None = None
    """Function from a checkpoint and its revision to a :class:`models.sizing.Footprint`, for
    ``raylens size``. It downloads no weights."""
    grounding: str | None = None
    """A :class:`models.grounding.Grounding`, by which the runtime ``openai`` finds boxes and
    points. Without it, that runtime does neither."""


@cache
def families() -> Mapping[str, Family]:
    """Return all families by name: the built-in ones, and those of installed packages.

    Raises ``ValueError``, which names the entry point, if one can't be loaded, if it is not a
    :class:`Family`, or if its name is taken.
    """
    built_in: list[Family] = [load_attribute(path) for path in BUILT_IN]
    by_name = {family.name: family for family in built_in}
    for entry in entry_points(group=GROUP):
        family = _load_entry(entry)
        if family.name in by_name:
            raise ValueError(f"{GROUP}: {entry.value}: there is a family {family.name!r} already")
        by_name[family.name] = family
    return by_name


def _load_entry(entry: EntryPoint) -> Family:
    try:
        family = entry.load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{GROUP}: {entry.value}: loading it failed: {reason}") from error
    if not isinstance(family, Family):
        raise ValueError(f"{GROUP}: {entry.value}: expected a Family, got {family!r}")
    return family


def family_named(name: str) -> Family:
    """Return a family. Raises ``ValueError``, which names the known ones."""
    known = families()
    if name not in known:
        raise ValueError(f"unknown family {name!r}; known: {', '.join(known)}")
    return known[name]


def load_attribute(path: str) -> Any:
    """Import ``module:attribute``."""
    module, attribute = path.split(":")
    return getattr(import_module(module), attribute)
