"""The configuration: a Serve config file's ``args``, and what environment variables add.

In order of precedence:

1. the ``args`` of the config file,
2. variables with the prefix ``RAYLENS_``, such as ``RAYLENS_JOBS__CAPACITY=70``,
3. the variables of other servers in :data:`COMPATIBLE`, if ``compat_env`` is true.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig

PREFIX = "RAYLENS_"
NOT_SETTINGS = frozenset({"RAYLENS_SERVER", "RAYLENS_WEBHOOK_SECRETS", "RAYLENS_RUN"})
"""Variables with our prefix that are no part of the application's configuration."""
COMPATIBLE: Mapping[str, str] = {
    "POSTGRES_URL": "jobs.store",
    "DATA_DIR": "jobs.data_dir",
    "IMAGE_BATCH_SIZE": "jobs.image_batch_size",
    "CLIENT_ID": "jobs.webhooks.client_id",
    "API_URL": "jobs.webhooks.public_url",
    "QUEUE_SIZE": "jobs.capacity",
    "QUEUE_WORKERS": "jobs.workers",
    "VLM_MODEL": "dialect_models.jobs",
    "LLM_MODEL": "jobs.llm",
}
"""Variables of the servers whose callers come to raylens, and the settings that they set."""
MODEL_VARIABLES = ("VLM_MODEL", "LLM_MODEL")
"""They name models; those that raylens doesn't serve are asked for at ``OLLAMA_HOST``."""
WITHOUT_MEANING = (
    "DDS_URL",
    "POSEMESH_EMAIL",
    "POSEMESH_PASSWORD",
    "MOONDREAM_BACKEND",
    "MOONDREAM_MF_PATH",
)
"""Variables of the same servers that set nothing here."""
OLLAMA = "http://localhost:11434"


class _Environment(BaseSettings, AppConfig):
    """The names of the settings, for pydantic-settings."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")


def load_config(args: Mapping[str, Any]) -> tuple[AppConfig, list[str]]:
    """Return the configuration, and remarks on the environment for the log.

    Raises pydantic's ``ValidationError``, and ``pydantic_settings.SettingsError`` for a variable
    that should hold JSON and does not.
    """
    settings = _merge(EnvSettingsSource(_Environment)(), args)
    notes = [f"{name} is not a setting, and is ignored" for name in _unknown_variables()]
    config = AppConfig.model_validate(settings)
    if not config.compat_env:
        return config, [*notes, *_unused_variables()]
    compatible, remarks = _compatible_settings(Catalog(config), settings)
    return AppConfig.model_validate(_merge(compatible, settings)), [*notes, *remarks]


def _unknown_variables() -> list[str]:
    known = {f"{PREFIX}{name}".upper() for name in AppConfig.model_fields}
    return sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name.partition("__")[0] not in known | NOT_SETTINGS
    )


def _unused_variables() -> list[str]:
    """Remark on variables of other servers, which ``compat_env`` would honor."""
    names = [name for name in (*COMPATIBLE, "OLLAMA_HOST") if os.environ.get(name)]
    if not names:
        return []
    return [
        f"{', '.join(names)}: ignored; --compat-env, or compat_env: true in the config file,"
        " honors them"
    ]


def _compatible_settings(
    catalog: Catalog, settings: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of other servers' variables, and a remark on each variable.

    Models that aren't served yet are appended to ``settings``.
    """
    compatible: dict[str, Any] = {}
    notes: list[str] = []
    for name, setting in COMPATIBLE.items():
        value = os.environ.get(name)
        if not value:
            continue
        if _has(settings, setting):
            notes.append(f"{name} is ignored: the configuration sets {setting}")
            continue
        notes.append(f"{name} sets {setting}")
        if name in MODEL_VARIABLES and catalog.knows(value):
            value = catalog.resolve(value, "jobs")
        elif name in MODEL_VARIABLES:
            _append_remote_model(settings, value)
            notes.append(f"{value} is asked for at {_ollama_url()}")
        compatible = _merge(_nested(setting, value), compatible)
    if os.environ.get("OLLAMA_HOST") and not any(map(os.environ.get, MODEL_VARIABLES)):
        notes.append("OLLAMA_HOST is ignored: neither VLM_MODEL nor LLM_MODEL names a model")
    notes += [f"{name} has no meaning here" for name in WITHOUT_MEANING if os.environ.get(name)]
    return compatible, notes


def _append_remote_model(settings: dict[str, Any], name: str) -> None:
    model = {
        "name": name,
        "runtime": "openai",
        "remote": {"base_url": _ollama_url(), "model": name},
    }
    if model not in settings["models"]:
        settings["models"] = [*settings["models"], model]


def _ollama_url() -> str:
    host = os.environ.get("OLLAMA_HOST") or OLLAMA
    base = host if "://" in host else f"http://{host}"
    return f"{base.rstrip('/')}/v1"


def _nested(setting: str, value: str) -> dict[str, Any]:
    """Return ``{"jobs": {"store": value}}`` for ``jobs.store``."""
    *path, key = setting.split(".")
    nested: dict[str, Any] = {key: value}
    for section in reversed(path):
        nested = {section: nested}
    return nested


def _has(settings: Mapping[str, Any], setting: str) -> bool:
    section: Any = settings
    for key in setting.split("."):
        if not isinstance(section, Mapping) or key not in section:
            return False
        section = section[key]
    return True


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, which win; mappings are merged at every level."""
    merged = dict(base)
    for key, value in changes.items():
        current = merged.get(key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            value = _merge(current, value)
        merged[key] = value
    return merged
