from __future__ import annotations

from dataclasses import asdict

import pytest

from raylens.core.errors import ModelFailed
from raylens.core.types import Detect, Findings, Location, Point, Region, VisionRequest
from raylens.jobs.blobs import compute_digest, make_reference
from raylens.jobs.job import Job, JobState
from tests.unit.raylens.jobs.conftest import QueueParts, make_job, run_jobs

PICTURE = b"picture"
REGION = Region(0.1, 0.2, 0.3, 0.4)
LOCATION = Location(0.5, 0.6)


def target_of(request: VisionRequest) -> str:
    assert isinstance(request.task, Detect | Point)
    return request.task.subject


def find(request: VisionRequest) -> Findings:
    """Find each object as many times as its name has letters."""
    count = len(target_of(request))
    if isinstance(request.task, Detect):
        return Findings(regions=(REGION,) * count)
    return Findings(locations=(LOCATION,) * count)


async def locate(parts: QueueParts, job_type: str, **fields: object) -> Job:
    digest = compute_digest(PICTURE)
    job_input = {"image": make_reference(digest), **fields}
    job = make_job(job_type, job_input, blobs=(digest,))
    (ended,) = await run_jobs(parts.make_queue(), job, pictures={digest: PICTURE})
    return ended


@pytest.mark.parametrize(
    ("job_type", "key", "place"), [("detect", "objects", REGION), ("point", "points", LOCATION)]
)
async def test_places_of_several_objects_have_labels(
    parts: QueueParts, job_type: str, key: str, place: Region | Location
) -> None:
    parts.service.find = find
    ended = await locate(parts, job_type, objects=["ab", "c"], max_objects=7)
    labels = ["ab", "ab", "c"]
    assert ended.output == {
        key: [{**asdict(place), "label": label} for label in labels],
        "model": "moondream",
    }
    tasks = [request.task for request in parts.service.requests]
    make_task = Detect if job_type == "detect" else Point
    assert tasks == [make_task("ab", 7), make_task("c", 7)]


async def test_places_of_one_object_have_no_label(parts: QueueParts) -> None:
    parts.service.find = find
    ended = await locate(parts, "detect", object="a")
    assert ended.output == {"objects": [asdict(REGION)], "model": "moondream"}


async def test_an_attempt_goes_on_at_the_object_where_the_last_one_failed(
    parts: QueueParts,
) -> None:
    calls: list[str] = []

    def fail_once_at_c(request: VisionRequest) -> Findings:
        calls.append(target_of(request))
        if calls.count("c") == 1 and calls[-1] == "c":
            raise ModelFailed("broken")
        return find(request)

    parts.service.find = fail_once_at_c
    ended = await locate(parts, "detect", objects=["a", "b", "c", "d"])
    assert ended.state is JobState.SUCCEEDED
    assert calls == ["a", "b", "c", "c", "d"]
    assert ended.output is not None
    assert [place["label"] for place in ended.output["objects"]] == ["a", "b", "c", "d"]
