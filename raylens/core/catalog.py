"""Which model a request means."""

from __future__ import annotations

from typing import Literal

from raylens.core.config import AppConfig
from raylens.core.errors import UnknownModel

Dialect = Literal["openai", "moondream", "caption", "generate", "jobs", "realtime"]


class Catalog:
    """The served models by name and alias.

    Aliases are those of the model, its checkpoint's hub id, and those of its family. If two models
    share an alias, it means the first.
    """

    def __init__(self, config: AppConfig) -> None:
        self.models = {model.name: model for model in config.models}
        self._defaults = config.dialect_models
        self._names = {name: name for name in self.models}
        for model in config.models:
            for name in model.all_names:
                self._names.setdefault(name, model.name)

    def resolve(self, name: str | None, dialect: Dialect) -> str:
        """Return the model's own name; the dialect's default model if ``name`` is None or empty.

        Raises ``UnknownModel``, which names the served models.
        """
        if not name:
            default: str = getattr(self._defaults, dialect)
            return self._names.get(default, next(iter(self.models)))
        try:
            return self._names[name]
        except KeyError:
            known = ", ".join(self.models)
            raise UnknownModel(
                f"model: unknown model {name[:128]!r}; known: {known}", "model"
            ) from None

    def knows(self, name: str) -> bool:
        """Whether ``name`` is a served model's name or alias."""
        return name in self._names

    def aliases(self, name: str) -> list[str]:
        return [alias for alias, model in self._names.items() if model == name and alias != name]
