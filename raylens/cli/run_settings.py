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


def settle(store: ResultStore, task: Task, redo: bool) -> Task:
    """Return the task as the store's earlier runs had it, and store its settings.

    With ``redo``, remove the earlier results, and give the task a new ``redo_id``. Raises
    ``UsageError`` if there are results of another request, and ``OSError``.
    """
    request = {"command": task.job_type, **task.fields, **store.scope}
    if redo:
        store.clear()
        task = task.redone(secrets.token_hex(8))
    else:
        for path in store.settings_paths:
            earlier = _load(path)
            redo_id = earlier.pop(_REDO_ID, "")
            if earlier == request:
                task = task.redone(redo_id)
            elif earlier and not store.is_empty:
                raise UsageError(_describe(path, earlier, request))
    text = json.dumps({**request, _REDO_ID: task.redo_id}, indent=1) + "\n"
    for path in store.settings_paths:
        replace_file(path, text)
    return task


def _load(path: Path) -> dict[str, Any]:
    """Return the stored settings; empty if there are none."""
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _describe(path: Path, earlier: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """Return the message that names the first setting that differs."""
    name = next(name for name in {**request, **earlier} if earlier.get(name) != request.get(name))
    before, now = (_quote(settings.get(name)) for settings in (earlier, request))
    return (
        f"{path.parent}: holds results with {name} {before}, and now it is {now}; "
        "add --redo to replace them, or choose another --out"
    )


def _quote(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
