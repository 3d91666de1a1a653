"""Serve's own schema of a config file, and the keys that Serve would silently ignore."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema


def validate(config: Any) -> None:
    """Raises pydantic's ``ValidationError``."""
    ServeDeploySchema.model_validate(config)


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Return the dotted names of keys that Serve's schema doesn't have, such as misspelled ones."""
    return list(_unknown_keys(config, ServeDeploySchema, ""))


def _unknown_keys(config: dict[str, Any], schema: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, value in config.items():
        if key not in schema.model_fields:
            yield f"{prefix}{key}"
            continue
        section = _section_schema(schema.model_fields[key].annotation)
        if section is None:
            continue
        for name, item in _items(f"{prefix}{key}", value):
            if isinstance(item, dict):
                yield from _unknown_keys(item, section, f"{name}.")


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a list with their dotted names; any other value as it is."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield f"{name}.{index}", item
    else:
        yield name, value


def _section_schema(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as ``X``, ``list[X]`` or ``X | None``.

    Returns None if there is none, or if there are several.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = [model for model in map(_section_schema, get_args(annotation)) if model is not None]
    return models[0] if len(models) == 1 else None
