"""Settings that change while the application runs: the ``user_config`` of its deployments.

Serve passes a changed ``user_config`` to the running replicas, but replaces them if ``args`` have
changed. All deployments get the same settings, and each takes what concerns it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ValidationError

from raylens.core.config import AppConfig, ModelConfig
from raylens.core.validation import explain

S = TypeVar("S")
T = TypeVar("T")

LIVE = frozenset(
    {
        "recipes",
        "limits",
        "defaults",
        "dialect_models",
        "auth",
        "client_limits",
        "fetch",
        "cors_origins",
        "allowed_hosts",
        "links",
    }
)
"""Settings of an :class:`AppConfig` that may change, beside some of ``jobs``, ``realtime`` and
``models``."""
LIVE_OF_JOBS = frozenset(
    {
        "workers",
        "capacity",
        "max_images",
        "max_picture_bytes",
        "min_free_bytes",
        "max_file_bytes",
        "max_batch_requests",
        "max_attempts",
        "attempt_timeout_s",
        "max_requests",
        "max_reads",
        "max_event_streams",
        "timeout_s",
        "result_ttl_s",
        "failed_pictures_ttl_s",
        "batch_concurrency",
        "image_batch_size",
    }
)
LIVE_OF_REALTIME = frozenset({"max_sessions", "idle_timeout_s", "max_frames"})
LIVE_OF_MODELS = frozenset(
    {
        "aliases",
        "fallback",
        "recipe",
        "max_image_size",
        "expected_response_time",
        "max_batch_size",
        "max_waiting",
        "max_prefill_slice_s",
        "retry_after_s",
    }
)
_LIVE_OF_SECTIONS = {"jobs": LIVE_OF_JOBS, "realtime": LIVE_OF_REALTIME}
_OTHER_NAMES = {"batch_size": "max_batch_size"}


def apply_settings(config: AppConfig, settings: Mapping[str, Any] | None) -> AppConfig:
    """Return ``config`` with ``settings`` in place of its own.

    A section such as ``limits`` keeps what ``settings`` don't mention; ``auth`` and lists are
    replaced. ``models`` holds settings by the model's name. Raises ``ValueError``, which names
    settings that are unknown, invalid, or can't change while the application runs.
    """
    settings = settings or {}
    _check_names(settings, LIVE | {"models"} | _LIVE_OF_SECTIONS.keys(), AppConfig, "")
    values = {name: getattr(config, name) for name in config.model_fields_set}
    for name, value in settings.items():
        current = getattr(config, name)
        if name == "models":
            values[name] = _apply_to_models(config.models, value)
        elif name in _LIVE_OF_SECTIONS:
            _check_names(value, _LIVE_OF_SECTIONS[name], type(current), f"{name}.")
            values[name] = _merge(current, value)
        elif isinstance(current, BaseModel) and isinstance(value, Mapping) and name != "auth":
            values[name] = _merge(current, value)
        elif isinstance(current, dict) and isinstance(value, Mapping):
            values[name] = {**current, **value}
        else:
            values[name] = value
    try:
        changed = AppConfig.model_validate(values)
    except ValidationError as error:
        raise ValueError("; ".join(map(str, explain(error)))) from None
    limit = config.defaults.max_timeout_s
    if changed.defaults.max_timeout_s > limit:  # by which replicas have ended their answers
        raise ValueError(
            f"defaults.max_timeout_s: {changed.defaults.max_timeout_s:g}; the limit is that of"
            f" args, {limit:g}"
        )
    return changed


class LastResult(Generic[S, T]):
    """A function that keeps its last result, and returns it again for the same argument."""

    def __init__(self, function: Callable[[S], T]) -> None:
        self._function = function
        self._last: tuple[S, T] | None = None

    def __call__(self, argument: S) -> T:
        if self._last is None or self._last[0] is not argument:
            self._last = argument, self._function(argument)
        return self._last[1]


class _LiveView:
    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._read(), name)


def live_view(read: Callable[[], T]) -> T:
    """Return an object whose attributes are at any time those of what ``read`` returns."""
    return cast(T, _LiveView(read))


def _apply_to_models(models: Iterable[ModelConfig], of_models: Any) -> tuple[ModelConfig, ...]:
    _check_mapping(of_models, "models")
    changed = tuple(_apply_to_model(model, of_models) for model in models)
    known = [model.name for model in changed]
    for name in of_models:
        if name not in known:
            raise ValueError(f"models.{name}: unknown model; known: {', '.join(known)}")
    return changed


def _apply_to_model(model: ModelConfig, of_models: Mapping[str, Any]) -> ModelConfig:
    if model.name not in of_models:
        return model
    prefix = f"models.{model.name}."
    changes = of_models[model.name]
    _check_mapping(changes, prefix.rstrip("."))
    changes = {_OTHER_NAMES.get(name, name): value for name, value in changes.items()}
    _check_names(changes, LIVE_OF_MODELS, ModelConfig, prefix)
    try:
        return ModelConfig.model_validate(_merge(model, changes))
    except ValidationError as error:
        raise ValueError("; ".join(f"{prefix}{problem}" for problem in explain(error))) from None


def _merge(section: BaseModel, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**section.model_dump(exclude_unset=True), **changes}


def _check_mapping(value: Any, name: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a mapping" if name else "expected a mapping")


def _check_names(value: Any, live: frozenset[str], schema: type[BaseModel], prefix: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a mapping whose keys are all ``live``."""
    _check_mapping(value, prefix.rstrip("."))
    for name in value:
        if name in live:
            continue
        if name in schema.model_fields:
            raise ValueError(f"{prefix}{name}: needs new replicas; change it in args")
        known = ", ".join(sorted(live))
        raise ValueError(f"{prefix}{name}: unknown setting; those that may change: {known}")
