"""Findings and reasoning as JSON, in the Moondream dialect's shapes; other dialects reuse them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from raylens.core.errors import ModelFailed
from raylens.core.types import Findings, Reasoning


def findings_as_json(findings: Findings | None) -> dict[str, Any]:
    """Return ``{"objects": [{x_min, y_min, x_max, y_max}]}`` or ``{"points": [{x, y}]}``.

    Raises ``ModelFailed`` if the answer ended without either.
    """
    if findings is not None and findings.regions is not None:
        return {"objects": [asdict(region) for region in findings.regions]}
    if findings is not None and findings.locations is not None:
        return {"points": [asdict(location) for location in findings.locations]}
    raise ModelFailed("the answer ended early")


def reasoning_as_json(reasoning: Reasoning) -> dict[str, Any]:
    """Return the reasoning as Moondream's client reads it: points are [x, y]."""
    grounding = [
        {
            "start_idx": part.start,
            "end_idx": part.end,
            "points": [[point.x, point.y] for point in part.points],
        }
        for part in reasoning.groundings
    ]
    return {"text": reasoning.text, "grounding": grounding}
