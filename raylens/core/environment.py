"""Environment variables of the systems whose callers come here, as settings. The config file wins
over them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

SETTINGS: Mapping[str, str] = {
    "POSTGRES_URL": "jobs.store",
    "DATA_DIR": "jobs.data_dir",
    "VLM_MODEL": "dialect_models.jobs",
    "LLM_MODEL": "jobs.llm.model",
    "IMAGE_BATCH_SIZE": "jobs.image_batch_size",
    "CLIENT_ID": "jobs.webhooks.client_id",
    "API_URL": "jobs.webhooks.public_url",
    "QUEUE_SIZE": "jobs.capacity",
    "QUEUE_WORKERS": "jobs.workers",
}
WITHOUT_MEANING = (
    "DDS_URL",
    "POSEMESH_EMAIL",
    "POSEMESH_PASSWORD",
    "MOONDREAM_BACKEND",
    "MOONDREAM_MF_PATH",
)
OLLAMA = "http://localhost:11434"


def with_environment(
    args: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The application's ``args`` with what the environment adds to them, and what should be said of
    it at start."""
    settings: dict[str, Any] = copy.deepcopy(dict(args))
    notes: list[str] = []
    for name, setting in SETTINGS.items():
        value = environment.get(name)
        if not value:
            continue
        if _set(settings, setting, value):
            notes.append(f"{name} sets {setting}")
        else:
            notes.append(f"{name} is ignored: the config file sets {setting}")
    _find_llm(settings, environment, notes)
    notes += [f"{name} has no meaning here" for name in WITHOUT_MEANING if environment.get(name)]
    return settings, notes


def _find_llm(settings: dict[str, Any], environment: Mapping[str, str], notes: list[str]) -> None:
    """Where the language model is that ``LLM_MODEL`` names: in the graph, or at Ollama's."""
    host = environment.get("OLLAMA_HOST")
    if "LLM_MODEL sets jobs.llm.model" not in notes:
        if host:
            notes.append("OLLAMA_HOST is ignored: LLM_MODEL names no model")
        return
    if settings["jobs"]["llm"]["model"] in _names(settings):
        return
    host = host or OLLAMA
    base = host if "://" in host else f"http://{host}"
    if _set(settings, "jobs.llm.base_url", f"{base.rstrip('/')}/v1"):
        notes.append(f"jobs.llm.base_url is {base.rstrip('/')}/v1")


def _names(settings: Mapping[str, Any]) -> set[str]:
    """Of the models; what isn't as it should be is for the configuration's own check to tell."""
    models = settings.get("models")
    named = (
        [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    )
    return {
        str(name) for model in named for name in (model.get("name"), *(model.get("aliases") or ()))
    }


def _set(settings: dict[str, Any], setting: str, value: str) -> bool:
    """Sets a dotted setting where nothing does; whether it did."""
    *path, last = setting.split(".")
    for key in path:
        if settings.get(key) is None:
            settings[key] = {}
        settings = settings[key]
        if not isinstance(settings, dict):
            return False
    if last in settings:
        return False
    settings[last] = value
    return True
