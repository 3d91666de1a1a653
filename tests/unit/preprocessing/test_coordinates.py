from __future__ import annotations

import pytest

from preprocessing.coordinates import in_original, in_processed
from preprocessing.geometry import Geometry
from raylens.core.errors import InvalidRequest
from raylens.core.types import Caption, Findings, Grounding, Location, Query, Reasoning, Region

CROPPED = Geometry((100, 100), (50, 50), (0.5, 0, 0.25, 0, 0.5, 0.25))
"""The middle of a picture."""


def test_findings_are_mapped_to_the_original() -> None:
    findings = Findings(
        regions=(Region(0, 0, 1, 0.5),),
        locations=(Location(0.5, 1),),
        reasoning=Reasoning("it", (Grounding(0, 2, (Location(0, 0.5),)),)),
    )
    assert in_original(findings, CROPPED) == Findings(
        regions=(Region(0.25, 0.25, 0.75, 0.5),),
        locations=(Location(0.5, 0.75),),
        reasoning=Reasoning("it", (Grounding(0, 2, (Location(0.25, 0.5),)),)),
    )
    assert in_original(Findings(), CROPPED) == Findings()


def test_spatial_refs_are_mapped_to_the_processed_picture() -> None:
    query = Query("?", spatial_refs=(Location(0.5, 0.75), Region(0, 0.25, 0.5, 1)))
    assert in_processed(query, CROPPED) == Query(
        "?", spatial_refs=(Location(0.5, 1), Region(0, 0, 0.5, 1))
    )
    assert in_processed(Caption(), CROPPED) == Caption()


@pytest.mark.parametrize(
    "ref", [Location(0.1, 0.5), Region(0, 0, 0.2, 1), Region(0.3, 0.8, 0.6, 1)]
)
def test_a_spatial_ref_that_was_cut_off_is_refused(ref: Location | Region) -> None:
    with pytest.raises(InvalidRequest, match=r"spatial_refs\.1: lies in a part"):
        in_processed(Query("?", spatial_refs=(Location(0.5, 0.5), ref)), CROPPED)
