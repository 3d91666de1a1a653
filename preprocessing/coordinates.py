"""Mapping of request and answer coordinates between the original and the processed picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preprocessing.geometry import Geometry
from raylens.core.errors import InvalidRequest
from raylens.core.types import Findings, Location, Query, Region, Task

TOLERANCE = 0.01
"""Distance outside the cropped picture, as a share of its side, within which a point still counts
as inside."""


def in_original(findings: Findings, geometry: Geometry) -> Findings:
    """Map findings in a processed picture to the coordinates of the original."""
    regions = findings.regions
    if regions is not None:
        regions = tuple(_map_region(region, geometry) for region in regions)
    locations = findings.locations
    if locations is not None:
        locations = _map_locations(locations, geometry)
    reasoning = findings.reasoning
    if reasoning is not None:
        groundings = tuple(
            replace(grounding, points=_map_locations(grounding.points, geometry))
            for grounding in reasoning.groundings
        )
        reasoning = replace(reasoning, groundings=groundings)
    return Findings(regions, locations, reasoning)


def in_processed(task: Task, geometry: Geometry) -> Task:
    """Map a task's points and boxes in the original picture to the processed picture.

    Raises ``InvalidRequest`` if one of them lies in a part that preprocessing cut off.
    """
    if not isinstance(task, Query) or not task.spatial_refs:
        return task
    to_processed = geometry.inverse()
    mapped_refs = []
    for index, ref in enumerate(task.spatial_refs):
        mapped = _map_ref(ref, to_processed)
        if _is_cut_off(ref, mapped, geometry):
            field = f"spatial_refs.{index}"
            raise InvalidRequest(
                f"{field}: lies in a part of the picture that preprocessing cut off", field
            )
        mapped_refs.append(mapped)
    return replace(task, spatial_refs=tuple(mapped_refs))


def _is_cut_off(ref: Location | Region, mapped: Location | Region, geometry: Geometry) -> bool:
    """Whether a box has no area left, or clipping moved a point, in the processed picture."""
    if isinstance(mapped, Region):
        return mapped.x_min >= mapped.x_max or mapped.y_min >= mapped.y_max
    assert isinstance(ref, Location)
    x, y = geometry.point(mapped.x, mapped.y)
    return abs(x - ref.x) > TOLERANCE or abs(y - ref.y) > TOLERANCE


def _map_ref(ref: Location | Region, geometry: Geometry) -> Location | Region:
    if isinstance(ref, Region):
        return _map_region(ref, geometry)
    return _map_location(ref, geometry)


def _map_region(region: Region, geometry: Geometry) -> Region:
    return Region(*geometry.box(region.x_min, region.y_min, region.x_max, region.y_max))


def _map_location(location: Location, geometry: Geometry) -> Location:
    return Location(*geometry.point(location.x, location.y))


def _map_locations(locations: Sequence[Location], geometry: Geometry) -> tuple[Location, ...]:
    return tuple(_map_location(location, geometry) for location in locations)
