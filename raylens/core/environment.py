"""The configuration: a Serve config file's ``args``, and what environment variables add.

In order of precedence:

1. the ``args`` of the config file,
2. variables with the prefix ``RAYLENS_``, such as ``RAYLENS_JOBS__CAPACITY=70``,
3. the variables of other servers in :data:`COMPATIBLE`, if ``compat_env`` is true.

Names of the prefixed variables ignore case. An empty variable counts as unset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from raylens.core.catalog import Catalog
from raylens.core.config import AppConfig
from raylens.core.validation import Path, explain

PREFIX = "RAYLENS_"
COMPAT_ENV_OPTION = "RAYLENS_RUN_COMPAT_ENV"
"""Set by ``raylens run --compat-env``, which wins over ``compat_env`` in the config file."""
NOT_SETTINGS = frozenset(
    {
        "RAYLENS_SERVER",
        "RAYLENS_API_KEY",
        "RAYLENS_RUN",
        "RAYLENS_DRAIN_FILE",
        "RAYLENS_CPU_KERNELS",
        "RAYLENS_KERNEL_CACHE",
        COMPAT_ENV_OPTION,
    }
)
"""Variables with our prefix that are no part of the application's configuration."""
COMPATIBLE: Mapping[str, str] = {
    "POSTGRES_URL": "jobs.store",
    "DATA_DIR": "jobs.data_dir",
    "IMAGE_BATCH_SIZE": "jobs.image_batch_size",
    "CLIENT_ID": "jobs.webhooks.client_id",
    "API_URL": "jobs.picture_source.api_url",
    "DDS_URL": "jobs.picture_source.dds_url",
    "QUEUE_SIZE": "jobs.capacity",
    "QUEUE_WORKERS": "jobs.workers",
    "VLM_MODEL": "dialect_models.jobs",
    "LLM_MODEL": "jobs.llm",
    "VRAM_THRESHOLD": "vram_threshold",
}
"""Variables of the servers whose callers come to raylens, and the settings that they set."""
MODEL_VARIABLES = ("VLM_MODEL", "LLM_MODEL")
"""Variables that name models. Requests for models that raylens doesn't serve go to
``OLLAMA_HOST``."""
MOONFILE_VARIABLE = "MOONDREAM_MF_PATH"
"""The variable with the path of a ``.mf`` file: the checkpoint of the model that captions, if that
is the bundled Moondream."""
WITHOUT_MEANING = ("MOONDREAM_BACKEND",)
"""Variables of the same servers that set nothing here."""
OLLAMA = "http://localhost:11434"
OLLAMA_PORT = "11434"

_EXPECTED_JSON = 'expected JSON, such as ["10.0.0.0/8"] or {"capacity": 70}'
_NEEDS_JSON = frozenset({"tuple_type", "dict_type", "model_type"})
"""Pydantic's errors for a plain string in place of a list or a section."""
_OLLAMA_HOST = re.compile(
    r"""
    (?: (?P<scheme> https? ) :// )?
    (?P<host> \[ [^]/]* \] | [0-9a-fA-F]* (?: : [0-9a-fA-F]* ){2,} | [^:/?\#\s]* )
    (?: : (?P<port> [0-9]{1,5} ) )?
    (?P<path> / [^?\#\s]* )?
    """,
    re.VERBOSE,
)


class VariableError(ValueError):
    """Environment variables have invalid values. The message names the variables."""


class _Environment(BaseSettings, AppConfig):
    """The names of the settings, for pydantic-settings."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")


class _Settings:
    """The settings of ``args``, and those that variables add."""

    def __init__(self, args: Mapping[str, Any]) -> None:
        self._args = args
        self.values = dict(args)
        self.variables: dict[Path, str] = {}
        """The variable behind each setting that a variable added."""
        self.notes: list[str] = []

    def add(self, variable: str, settings: Mapping[str, Any]) -> bool:
        """Add what a variable sets, except for settings that have a value already.

        Returns whether it added any. Notes the exceptions.
        """
        paths = list(_leaves(settings))
        overriding = {path: _find_value(self.values, path) for path in paths}
        effective = [path for path in paths if overriding[path] is None]
        self.variables |= dict.fromkeys(effective, variable)
        self.values = _merge(settings, self.values)
        present = dict.fromkeys(".".join(path) for path in overriding.values() if path)
        if present:
            extent = "ignored in part" if effective else "ignored"
            self.notes.append(
                f"{variable} is {extent}: the configuration sets {', '.join(present)}"
            )
        return bool(effective)

    def add_remote_model(self, variable: str, name: str) -> None:
        """Append a model behind ``OLLAMA_HOST`` to ``models``, unless it is there already."""
        url = _ollama_url()
        remote = {"base_url": url, "model": name}
        model = {"name": name, "runtime": "openai", "remote": remote}
        models = self.values["models"]
        if model in models:
            return
        path = ("models", str(len(models)))
        self.values["models"] = [*models, model]
        self.variables[path] = variable
        self.variables[*path, "remote", "base_url"] = "OLLAMA_HOST"
        self.notes.append(f"requests for {name} go to {url}")

    def set_checkpoint(self, variable: str, name: str, checkpoint: str) -> None:
        """Set the checkpoint of a model, unless it is no bundled Moondream."""
        models = [dict(model) for model in self.values["models"]]
        for index, model in enumerate(models):
            is_bundled = model.get("checkpoint", "pocket") == "pocket"
            if model.get("name") == name and model.get("family") == "moondream" and is_bundled:
                model["checkpoint"] = checkpoint
                self.values["models"] = models
                self.variables["models", str(index), "checkpoint"] = variable
                self.notes.append(f"{variable} sets the checkpoint of {name}")
                return
        self.notes.append(f"{variable} is ignored: {name} isn't the bundled Moondream")

    def validate(self) -> AppConfig:
        """Raises ``VariableError`` if a variable is at fault, and otherwise ``ValidationError``."""
        try:
            return AppConfig.model_validate(self.values)
        except ValidationError as error:
            self._raise_variable_error(error)
            raise

    def _raise_variable_error(self, error: ValidationError) -> None:
        lines = []
        for problem in explain(error):
            variable = self._find_variable(problem.path)
            message = _EXPECTED_JSON if problem.type in _NEEDS_JSON else problem.message
            if variable is not None:
                lines.append(f"{variable}: {message}")
        if lines:
            raise VariableError("; ".join(dict.fromkeys(lines))) from None

    def _find_variable(self, path: Path) -> str | None:
        """Return the variable that set ``path``, a section that contains it, or a part of it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.variables:
                return self.variables[path[:length]]
        if _find_value(self._args, path) is not None:
            return None
        parts = [name for part, name in self.variables.items() if part[: len(path)] == path]
        return parts[0] if parts else None


def load_config(args: Mapping[str, Any]) -> tuple[AppConfig, list[str]]:
    """Return the configuration, and remarks on the environment for the log.

    Raises ``VariableError``, or pydantic's ``ValidationError`` if ``args`` are invalid.
    """
    if os.environ.get(COMPAT_ENV_OPTION):
        args = {**args, "compat_env": True}
    settings = _Settings(args)
    unknown = _add_prefixed(settings)
    config = settings.validate()
    settings.notes += _note_unknown(unknown, config)
    if config.compat_env:
        _add_compatible(settings, Catalog(config))
        config = settings.validate()
    else:
        settings.notes += _note_compatible()
    meaningless = _join_set_variables(WITHOUT_MEANING)
    if meaningless:
        settings.notes.append(f"{meaningless}: ignored; raylens has no use for them")
    return config, settings.notes


def _add_prefixed(settings: _Settings) -> list[str]:
    """Add the variables with our prefix. Returns the names of those that set nothing.

    ``RAYLENS_JOBS__CAPACITY`` precedes ``RAYLENS_JOBS``, and therefore wins.
    """
    names = [name for name in os.environ if name.upper().startswith(PREFIX) and os.environ[name]]
    unknown = []
    for name in sorted(names, key=lambda name: (-name.count("__"), name)):
        parsed = _parse_variable(name)
        if parsed:
            settings.add(name, parsed)
        else:
            unknown.append(name)
    return unknown


def _parse_variable(name: str) -> dict[str, Any]:
    """Return the settings in a variable; none if its name is not that of a setting."""
    source = EnvSettingsSource(_Environment)
    source.env_vars = {name.lower(): os.environ[name]}
    try:
        return source()
    except SettingsError:
        raise VariableError(f"{name}: {_EXPECTED_JSON}") from None


def _note_unknown(names: list[str], config: AppConfig) -> list[str]:
    """Return a remark on variables, except for those that the configuration names."""
    keys = {model.remote.api_key_env for model in config.models}
    known = {
        *keys,
        config.jobs.webhooks.secrets_env,
        config.realtime.webrtc.turn_secret_env,
    }
    unknown = [name for name in names if name not in known and name.upper() not in NOT_SETTINGS]
    return [f"{', '.join(unknown)}: unknown, and ignored"] if unknown else []


def _note_compatible() -> list[str]:
    """Return a remark on variables of other servers, which ``compat_env`` would honor."""
    names = _join_set_variables((*COMPATIBLE, "OLLAMA_HOST", MOONFILE_VARIABLE))
    if not names:
        return []
    return [f"{names}: ignored; --compat-env, or compat_env: true in the config file, honors them"]


def _add_compatible(settings: _Settings, catalog: Catalog) -> None:
    """Add the variables of other servers, and note each of them.

    Models that aren't served yet are appended to ``models``.
    """
    for name, setting in COMPATIBLE.items():
        value = os.environ.get(name)
        if not value:
            continue
        is_served = catalog.knows(value)
        if name in MODEL_VARIABLES and is_served:
            value = catalog.resolve(value, "jobs")
        if not settings.add(name, _nested(setting, value)):
            continue
        settings.notes.append(f"{name} sets {setting}")
        if name in MODEL_VARIABLES and not is_served:
            settings.add_remote_model(name, value)
    if path := os.environ.get(MOONFILE_VARIABLE):
        settings.set_checkpoint(MOONFILE_VARIABLE, catalog.resolve(None, "caption"), path)
    if os.environ.get("OLLAMA_HOST") and "OLLAMA_HOST" not in settings.variables.values():
        settings.notes.append(
            "OLLAMA_HOST is ignored: neither VLM_MODEL nor LLM_MODEL names a model there"
        )


def _join_set_variables(names: tuple[str, ...]) -> str:
    return ", ".join(name for name in names if os.environ.get(name))


def _ollama_url() -> str:
    """Return the base URL of Ollama's OpenAI API.

    Reads ``OLLAMA_HOST`` as Ollama's own client does (``envconfig.Host`` in its repository): the
    default port is 11434, unless there is a scheme. Raises ``VariableError``.
    """
    value = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'") or OLLAMA
    match = _OLLAMA_HOST.fullmatch(value)
    if match is None:
        raise VariableError("OLLAMA_HOST: expected a host and port, or a URL")
    scheme, host, port, path = match.group("scheme", "host", "port", "path")
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"  # IPv6
    if not scheme:
        port = port or OLLAMA_PORT
    address = f"{host or '127.0.0.1'}:{port}" if port else host or "127.0.0.1"
    folder = (path or "").rstrip("/").removesuffix("/v1")
    return f"{scheme or 'http'}://{address}{folder}/v1"


def _nested(setting: str, value: str) -> dict[str, Any]:
    """Return ``{"jobs": {"store": value}}`` for ``jobs.store``."""
    *path, key = setting.split(".")
    nested: dict[str, Any] = {key: value}
    for section in reversed(path):
        nested = {section: nested}
    return nested


def _leaves(settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the paths of all values that aren't sections."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            for path in _leaves(value):
                yield (key, *path)
        else:
            yield (key,)


def _find_value(settings: Mapping[str, Any], path: Path) -> Path | None:
    """Return the part of ``path`` that leads to a value, or None if there is no value."""
    section: Any = settings
    for length, key in enumerate(path):
        if not isinstance(section, Mapping):
            return path[:length]
        if key not in section:
            return None
        section = section[key]
    return path


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, which win; mappings are merged at every level."""
    merged = dict(base)
    for key, value in changes.items():
        current = merged.get(key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            value = _merge(current, value)
        merged[key] = value
    return merged
