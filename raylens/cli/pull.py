"""``raylens pull``: fetches checkpoints into the Hugging Face cache before a server needs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from models.hub import (
    Download,
    DownloadFailed,
    Unavailable,
    fetch,
    find_downloads,
    is_local,
    list_downloads,
)
from raylens.cli.config_file import ConfigError
from raylens.core.config import AppConfig, ModelConfig
from raylens.core.families import family_named

RETRY = 1
"""Exit status if a download failed that may succeed later."""
WRONG = 2
"""Exit status if a checkpoint can't be had as it was asked for."""


@dataclass(frozen=True)
class Wanted:
    """A checkpoint to fetch. ``model`` is its entry in a config file, if it has one."""

    checkpoint: str
    revision: str | None = None
    model: ModelConfig | None = None

    @property
    def name(self) -> str:
        return self.checkpoint if self.model is None else self.model.name

    def reason_to_skip(self) -> str | None:
        """Return why there is nothing to fetch, or None."""
        if self.model is not None and self.model.runtime != "engine":
            return f"the runtime {self.model.runtime} loads its own weights"
        if self.checkpoint == "pocket":
            return "the pocket checkpoints are bundled"
        if Path(self.checkpoint).exists():
            return f"{self.checkpoint} is on this machine"
        return None

    def downloads(self) -> list[Download]:
        """Raises ``Unavailable`` or ``DownloadFailed``."""
        if is_local(self.checkpoint):
            raise Unavailable(f"there is no {self.checkpoint} on this machine")
        if self.model is None or self.model.family is None:
            return find_downloads(self.checkpoint, self.revision)
        family = family_named(self.model.family)
        return list_downloads(self.checkpoint, self.revision, family, self.model.family_settings)


def choose_models(
    applications: Iterable[AppConfig], name: str | None, revision: str | None
) -> list[Wanted]:
    """Return the checkpoints of the configured models, or of the one with this name, alias or
    checkpoint. Raises ``ConfigError`` if there is none."""
    models = [model for application in applications for model in application.models]
    chosen = [
        model
        for model in models
        if name is None or name in model.all_names or name == model.checkpoint
    ]
    if not chosen:
        known = ", ".join(model.name for model in models)
        raise ConfigError(f"no model {name!r}; known: {known}")
    return [Wanted(model.checkpoint, revision or model.revision, model) for model in chosen]


def pull(wanted: Iterable[Wanted], console: Console) -> int:
    """Fetch all of them, one after another; ``console`` is told about each.

    Returns the exit status: that of the worst failure.
    """
    return max((_pull_one(one, console) for one in wanted), default=0)


def _pull_one(wanted: Wanted, console: Console) -> int:
    reason = wanted.reason_to_skip()
    if reason is not None:
        _tell(console, wanted.name, f"nothing to fetch: {reason}")
        return 0
    try:
        for download in wanted.downloads():
            _tell(console, wanted.name, f"fetching {download}")
            _tell(console, wanted.name, f"in {fetch(download)}")
    except Unavailable as error:
        _tell(console, wanted.name, str(error), "red")
        return WRONG
    except DownloadFailed as error:
        _tell(console, wanted.name, f"{error}; the same command goes on there", "red")
        return RETRY
    return 0


def _tell(console: Console, name: str, message: str, style: str = "bold") -> None:
    console.print(f"[{style}]{escape(name)}:[/{style}] {escape(message)}", soft_wrap=True)
