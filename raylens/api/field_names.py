"""The sender's names of fields, in what a model says about a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from raylens.core.errors import RaylensError
from raylens.core.types import Delta

FieldNames = Mapping[str, str]
"""Names that the dialect has for fields of a request, by the names in errors of models."""


async def rename_fields(
    deltas: AsyncGenerator[Delta, None], names: FieldNames
) -> AsyncGenerator[Delta, None]:
    """Yield the deltas. Their warnings and errors name fields as the dialect does."""
    async with aclosing(deltas):
        try:
            async for delta in deltas:
                if delta.warnings:
                    warnings = tuple(_rename_warning(text, names) for text in delta.warnings)
                    delta = replace(delta, warnings=warnings)
                yield delta
        except RaylensError as error:
            if error.field is None:
                raise
            raise error.about(_rename(error.field, names)) from None


def _rename(field: str, names: FieldNames) -> str:
    for theirs, ours in names.items():
        if field == theirs or field.startswith(f"{theirs}."):
            return ours + field.removeprefix(theirs)
    return field


def _rename_warning(warning: str, names: FieldNames) -> str:
    field, colon, rest = warning.partition(":")
    return f"{_rename(field, names)}{colon}{rest}"
