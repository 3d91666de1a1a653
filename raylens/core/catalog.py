"""Which model a request means."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from raylens.core.config import AppConfig, ModelConfig
from raylens.core.errors import UnknownModel

Dialect = Literal["openai", "moondream", "caption", "jobs"]

FAMILY_ALIASES = {
    "moondream": ("moondream2", "moondream3-preview", "moondream:1.8b"),
    "smolvlm": ("smolvlm2_500m_video",),
}
"""Names by which clients of other servers ask for a family."""


class Catalog:
    """The served models by name and alias: a model's own, its checkpoint's hub id, and its
    family's."""

    def __init__(self, config: AppConfig) -> None:
        self.models = {model.name: model for model in config.models}
        self._defaults = config.dialect_models
        self._names = {name: name for name in self.models}
        for model in config.models:
            for alias in _aliases(model):
                self._names.setdefault(alias, model.name)

    def resolve(self, name: str | None, dialect: Dialect) -> str:
        """The model's own name; the dialect's default where ``name`` is None or empty.

        Raises ``UnknownModel``, which names the models that there are.
        """
        if not name:
            default: str = getattr(self._defaults, dialect)
            return self._names.get(default, next(iter(self.models)))
        try:
            return self._names[name]
        except KeyError:
            known = ", ".join(self.models)
            raise UnknownModel(
                f"model: {name[:128]!r} is not served here; there are: {known}", "model"
            ) from None

    def knows(self, name: str) -> bool:
        """Whether some model here goes by this name."""
        return name in self._names

    def aliases(self, name: str) -> list[str]:
        return [alias for alias, model in self._names.items() if model == name and alias != name]


def _aliases(model: ModelConfig) -> tuple[str, ...]:
    is_hub_id = model.checkpoint != "pocket" and not Path(model.checkpoint).exists()
    hub_id = (model.checkpoint,) if is_hub_id else ()
    return (*model.aliases, *hub_id, *FAMILY_ALIASES.get(model.family, ()))
