"""Checks a Serve config file before Ray starts: Serve itself would find mistakes late, or never."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raylens.core.config import AppConfig, AuthConfig
from raylens.core.endpoint import Endpoint
from raylens.core.environment import VariableError, load_config
from raylens.core.fairness import reserve
from raylens.core.live_settings import apply_settings
from raylens.core.validation import explain

IMPORT_PATH = "deployments.app:build_app"
DEPLOYMENTS = ("Ingress", "Preprocessor", "Realtime")
"""Of every application, beside one for each model."""
"""The import path of a raylens application."""


class ConfigError(Exception):
    """A config file that can't work; the message names the key."""


class EnvironmentVariableError(ConfigError):
    """A variable that can't work beside the config file; the message names the variable."""


def check_config_file(path: Path, host: str | None = None, port: int | None = None) -> Endpoint:
    """Check a Serve config file and its raylens application, and print remarks on the environment.

    ``host`` and ``port`` replace those in the file's ``http_options``.
    Other applications in the file are Serve's concern. Raises ``ConfigError``, which names the key
    or the environment variable at fault.
    """
    config, applications = _read_serve_config(path)
    options = config.get("http_options") or {}
    if host is None:
        host = str(options.get("host", "127.0.0.1"))
    for application in applications:
        app = _load_application(application.get("args") or {})
        _check_access(app, host)
        _check_live_settings(application.get("deployments") or (), app, host)
        _check_deployment_names(application.get("deployments") or (), app)
        _check_job_queue(app)
    prefix = applications[0].get("route_prefix", "/")
    return Endpoint(
        host,
        int(options.get("port", 8000)) if port is None else port,
        str(prefix or "").rstrip("/"),
    )


def read_applications(path: Path) -> list[AppConfig]:
    """Return the raylens applications of a Serve config file, with what the environment adds.

    Raises ``ConfigError``.
    """
    _, applications = _read_serve_config(path)
    return [_load_application(application.get("args") or {}) for application in applications]


def _read_serve_config(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the file's contents, and its raylens applications."""
    config = _read_yaml(path)
    _check_serve_settings(config)
    applications = [
        application
        for application in config["applications"]
        if application.get("import_path") == IMPORT_PATH
    ]
    if not applications:
        raise ConfigError(f"applications: expected at least one with the import_path {IMPORT_PATH}")
    return config, applications


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8: byte {error.start} is invalid") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error


def _check_serve_settings(config: Any) -> None:
    from deployments import serve_schema  # imports Ray, which takes a second

    if not isinstance(config, dict):
        raise ConfigError("expected a mapping with the key applications")
    try:
        serve_schema.validate(config)
    except ValidationError as error:
        raise ConfigError(_explain(error, "")) from None
    unknown = serve_schema.unknown_keys(config)
    if unknown:
        raise ConfigError("; ".join(f"{key}: unknown key" for key in unknown))


def _load_application(args: dict[str, Any]) -> AppConfig:
    try:
        config, notes = load_config(args)
    except ValidationError as error:
        raise ConfigError(_explain(error, "args.")) from None
    except VariableError as error:
        raise EnvironmentVariableError(str(error)) from None
    for note in notes:
        _note(note)
    return config


def _check_access(app: AppConfig, host: str, prefix: str = "args.") -> None:
    try:
        app.check_reach(host)
        if isinstance(app.auth, AuthConfig):
            app.auth.key_ring()
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _check_live_settings(deployments: Iterable[dict[str, Any]], app: AppConfig, host: str) -> None:
    blocks = {deployment["name"]: deployment.get("user_config") or {} for deployment in deployments}
    for name, settings in blocks.items():
        try:
            live = apply_settings(app, settings)
            _check_access(live, host, "")
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"deployments.{name}.user_config: {error}") from None
        if name == "Ingress":
            _note_small_queues(deployments, live)
    settings = blocks.get("Ingress", {})
    for name in (*DEPLOYMENTS, *(model.name for model in app.models)):
        if blocks.get(name, {}) != settings:
            _note(f"the user_config of {name} is not that of Ingress; give both the same")


def _note_small_queues(deployments: Iterable[dict[str, Any]], app: AppConfig) -> None:
    """Note deployments that would refuse requests which the settings allow."""
    from deployments.app import max_ingress_requests  # imports Ray, which takes a second

    needed = {model.name: model.capacity + reserve(model.capacity) for model in app.models}
    needed["Ingress"] = max_ingress_requests(app)
    for deployment in deployments:
        name = deployment["name"]
        limit = deployment.get("max_ongoing_requests")
        if limit is not None and limit < needed.get(name, 0):
            _note(f"max_ongoing_requests of {name} is {limit}; its limits allow {needed[name]}")


def _note(text: str) -> None:
    print(f"raylens: {text}", file=sys.stderr)


def _check_deployment_names(deployments: Iterable[dict[str, Any]], app: AppConfig) -> None:
    known = {*DEPLOYMENTS, *(model.name for model in app.models)}
    for deployment in deployments:
        name = deployment["name"]
        if name not in known:
            raise ConfigError(
                f"deployments: unknown deployment {name!r}; known: {', '.join(sorted(known))}"
            )


def _check_job_queue(app: AppConfig) -> None:
    """Refuse a queue that can't store anything: Serve would try for minutes to start it."""
    from raylens.jobs.factory import check_settings
    from raylens.jobs.store import QueueStartupError

    if not app.jobs.enabled:
        return
    try:
        check_settings(app.jobs)
    except QueueStartupError as error:
        raise ConfigError(f"args.{error}") from None


def _explain(error: ValidationError, prefix: str) -> str:
    return "; ".join(f"{prefix}{problem}" for problem in explain(error))
