"""Settings of stored results: a run that would mix answers to different requests is refused."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylens.cli.errors import UsageError
from raylens.cli.results import ResultStore, replace_file
from raylens.cli.tasks import Task

_REDO_ID = "redo_id"


class RunSettings:
    """The request of a run, beside that of the stored results.

    With ``redo``, the task gets a new ``redo_id``; otherwise it has that of the earlier runs.
    Nothing is changed before :meth:`begin`. Raises ``UsageError`` if there are results of another
    request that the run would not replace.
    """

    def __init__(self, store: ResultStore, task: Task, redo: bool) -> None:
        self._store = store
        self._redo = redo
        self._request = {"command": task.job_type, **task.fields, **store.scope}
        self.has_begun = False
        earlier = {} if store.settings_path is None else _load(store.settings_path)
        redo_id = secrets.token_hex(8) if redo else earlier.get(_REDO_ID, "")
        earlier.pop(_REDO_ID, None)
        if not store.is_empty:
            self._check(earlier)
        self.task = task.redone(redo_id)

    def _check(self, earlier: Mapping[str, Any]) -> None:
        if not self._redo and not earlier:
            self._store.check()
        if earlier in ({}, self._request):
            return
        if self._redo:
            self._store.check_redo()
            return
        raise UsageError(_describe(self._store.name, earlier, self._request))

    def begin(self) -> None:
        """Store the settings, and remove the results that this run replaces. Raises ``OSError``."""
        self._store.begin(self._redo)
        self.has_begun = True
        if self._store.settings_path is not None:
            settings = {**self._request, _REDO_ID: self.task.redo_id}
            replace_file(self._store.settings_path, json.dumps(settings, indent=1) + "\n")


def _load(path: Path) -> dict[str, Any]:
    """Return the stored settings; empty if there are none."""
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _describe(name: str, earlier: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return the message that names the first setting that differs."""
    key = next(key for key in {**request, **earlier} if earlier.get(key) != request.get(key))
    before, now = (_quote(settings.get(key)) for settings in (earlier, request))
    return (
        f"{name}: holds results with {key} {before}, and now it is {now};"
        " add --redo to replace them, or choose another output"
    )


def _quote(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
