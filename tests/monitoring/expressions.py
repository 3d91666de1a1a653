"""What a PromQL expression asks for. It knows the shapes that ``monitoring/`` uses."""

from __future__ import annotations

import re
from dataclasses import dataclass

_GROUPING = re.compile(r"\b(by|on|without|ignoring) \(([^)]*)\)")
_SELECTOR = re.compile(r"\b(ray_\w+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


@dataclass(frozen=True)
class Expression:
    text: str

    @property
    def selectors(self) -> list[tuple[str, set[str]]]:
        """Each metric, and the labels that it is selected by."""
        without_groupings = _GROUPING.sub("", self.text)
        return [
            (metric, set(_MATCHER.findall(matchers)))
            for metric, matchers in _SELECTOR.findall(without_groupings)
        ]

    @property
    def metrics(self) -> set[str]:
        return {metric for metric, _ in self.selectors}

    @property
    def groupings(self) -> list[set[str]]:
        """The labels of each ``by (…)`` and ``on (…)``."""
        return [set(re.findall(r"\w+", labels)) for _, labels in _GROUPING.findall(self.text)]

    @property
    def variables(self) -> set[str]:
        return set(re.findall(r"\$(\w+)", self.text))
