"""Coordinates of requests and answers, between the original picture and the processed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preprocessing.geometry import Geometry
from raylens.core.errors import InvalidRequest
from raylens.core.types import Findings, Location, Query, Region, Task

TOLERANCE = 0.01
"""How far a point may lie outside the cropped picture and still count as inside: a share of the side."""


def in_original(findings: Findings, geometry: Geometry) -> Findings:
    """What was found in a processed picture, in the coordinates of the original."""
    regions, locations, reasoning = findings.regions, findings.locations, findings.reasoning
    if regions is not None:
        regions = tuple(_region(region, geometry) for region in regions)
    if locations is not None:
        locations = _locations(locations, geometry)
    if reasoning is not None:
        groundings = (
            replace(part, points=_locations(part.points, geometry)) for part in reasoning.groundings
        )
        reasoning = replace(reasoning, groundings=tuple(groundings))
    return Findings(regions, locations, reasoning)


def in_processed(task: Task, geometry: Geometry) -> Task:
    """A task about places in the original picture, in the coordinates of the processed one."""
    if not isinstance(task, Query) or not task.spatial_refs:
        return task
    back = geometry.inverse()
    places = []
    for number, place in enumerate(task.spatial_refs):
        moved = (
            _region(place, back)
            if isinstance(place, Region)
            else Location(*back.point(place.x, place.y))
        )
        if _is_cut_off(place, moved, geometry):
            field = f"spatial_refs.{number}"
            raise InvalidRequest(
                f"{field}: lies in a part of the picture that preprocessing has cut off", field
            )
        places.append(moved)
    return replace(task, spatial_refs=tuple(places))


def _is_cut_off(place: Location | Region, moved: Location | Region, geometry: Geometry) -> bool:
    """A box of which nothing is left, or a point that is another one in the processed picture."""
    if isinstance(moved, Region):
        return moved.x_min >= moved.x_max or moved.y_min >= moved.y_max
    assert isinstance(place, Location)
    x, y = geometry.point(moved.x, moved.y)
    return abs(x - place.x) > TOLERANCE or abs(y - place.y) > TOLERANCE


def _region(region: Region, geometry: Geometry) -> Region:
    return Region(*geometry.box(region.x_min, region.y_min, region.x_max, region.y_max))


def _locations(points: Sequence[Location], geometry: Geometry) -> tuple[Location, ...]:
    return tuple(Location(*geometry.point(point.x, point.y)) for point in points)
