"""Checkpoints on the Hugging Face hub: their families, and the files that the loaders read.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from raylens.core.families import Family, FamilySettings, families

CONFIG_FILE = "config.json"
WEIGHTS = ".safetensors"


class Unavailable(Exception):
    """The hub has no such checkpoint for this user, or it may not be asked. Another try can't help.

    The message says what to do.
    """


class DownloadFailed(Exception):
    """A download was interrupted, or the hub wasn't reached. Another try may succeed."""


@dataclass(frozen=True)
class Download:
    """Files of one repository."""

    repository: str
    revision: str | None
    patterns: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def is_local(checkpoint: str) -> bool:
    """Whether a checkpoint needs no download: it is bundled, a file or a folder."""
    return checkpoint == "pocket" or Path(checkpoint).exists() or _is_path(checkpoint)


def _is_path(checkpoint: str) -> bool:
    """Whether this can't be a hub id, so that it can only be a path."""
    suffixes = tuple(suffix for family in families().values() for suffix in family.file_suffixes)
    return checkpoint.startswith(("/", "./", "../", "~")) or checkpoint.endswith(suffixes)


def default_revision(checkpoint: str) -> str | None:
    """Return the revision of a hub id that its family reads, if that isn't the newest."""
    revisions = (family.default_revisions.get(checkpoint) for family in families().values())
    return next(filter(None, revisions), None)


def find_family(checkpoint: str, revision: str | None) -> Family:
    """Return a checkpoint's family. Raises ``ValueError`` if it is unknown."""
    for family in families().values():
        if checkpoint.endswith(family.file_suffixes):
            return family
    config = json.loads(config_path(checkpoint, revision).read_text())
    model_type = config.get("model_type") if isinstance(config, dict) else None
    by_model_type = {name: family for family in families().values() for name in family.model_types}
    if not isinstance(model_type, str) or model_type not in by_model_type:
        known = ", ".join(by_model_type)
        raise ValueError(f"{checkpoint}: unknown model_type {model_type!r}; known: {known}")
    return by_model_type[model_type]


def config_path(checkpoint: str, revision: str | None) -> Path:
    """Return the path of a checkpoint's configuration, which is downloaded from the hub if the
    checkpoint is no folder."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint) / CONFIG_FILE
    return Path(hf_hub_download(checkpoint, CONFIG_FILE, revision=revision))


def find_downloads(checkpoint: str, revision: str | None) -> list[Download]:
    """Return the downloads of a hub id, whose configuration is downloaded to tell its family.

    Raises ``Unavailable`` or ``DownloadFailed``.
    """
    _check_online()
    revision = revision or default_revision(checkpoint)
    asked = Download(checkpoint, revision, (CONFIG_FILE,))
    try:
        family = find_family(checkpoint, revision)
    except json.JSONDecodeError as error:
        raise Unavailable(f"its {CONFIG_FILE} is no JSON: {error}") from error
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise _explain(asked, error) from error
    return list_downloads(checkpoint, revision, family, family.settings())


def list_downloads(
    checkpoint: str, revision: str | None, family: Family, settings: FamilySettings
) -> list[Download]:
    """Return the downloads of a hub id of this family, whose models have these settings."""
    return [
        Download(
            files.repository or checkpoint,
            getattr(settings, files.revision_setting) if files.revision_setting else revision,
            files.patterns,
        )
        for files in family.hub_files
    ]


def fetch(download: Download) -> Path:
    """Fetch what is missing into the Hugging Face cache. Returns the folder of the files.

    Raises ``Unavailable`` or ``DownloadFailed``.
    """
    _check_online()
    try:
        folder = snapshot_download(
            download.repository,
            revision=download.revision,
            allow_patterns=list(download.patterns),
            ignore_patterns=["*/*"],  # copies in other formats, as of ONNX
        )
    except (OSError, ValueError, EntryNotFoundError) as error:
        raise _explain(download, error) from error
    _check_weights(download.patterns, Path(folder))
    return Path(folder)


def _check_online() -> None:
    if is_offline_mode():
        raise Unavailable("HF_HUB_OFFLINE is set, so nothing is downloaded; unset it for this once")


def _check_weights(patterns: Sequence[str], folder: Path) -> None:
    if any(pattern.endswith(WEIGHTS) for pattern in patterns) and not any(
        folder.glob(f"*{WEIGHTS}")
    ):
        raise Unavailable("its repository has no safetensors, the only weights that are loaded")


def _explain(download: Download, error: Exception) -> Unavailable | DownloadFailed:
    """Return the error that says in a sentence what went wrong."""
    repository = download.repository
    if isinstance(error, GatedRepoError):
        return Unavailable(
            f"{repository} is gated: accept its terms on its page on the hub, and set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return Unavailable(
            f"there is no repository {repository} on the hub, or it is private: then set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return Unavailable(f"{repository} has no revision {download.revision}")
    if isinstance(error, LocalEntryNotFoundError):
        return DownloadFailed(f"the hub can't be reached: {_first_line(error.__cause__ or error)}")
    if isinstance(error, EntryNotFoundError):
        return Unavailable(f"{repository} has no {CONFIG_FILE}")
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return Unavailable(
            f"the hub refuses {repository} (HTTP {error.response.status_code}): check HF_TOKEN"
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return Unavailable(_first_line(error))  # no hub id, or an unknown family
    return DownloadFailed(f"downloading {repository} failed: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
