"""Videos in background jobs: stored as pictures are, and sampled as the request asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from raylens.core.types import (
    Chat,
    ImagePart,
    MediaFile,
    PictureFile,
    TextPart,
    VideoFile,
    VideoPart,
    VisionRequest,
)
from raylens.jobs.blobs import compute_digest, make_reference
from raylens.jobs.queue import JobQueue
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE
from tests.unit.raylens.api.test_jobs import (
    PATH,
    event_loop_policy,
    http,
    model,
    parts,
    queue,
    submit,
    wait_until_ended,
    webhook_client,
)
from tests.unit.raylens.api.test_videos import BASE64, JPEGS, VIDEO, VIDEO_URL
from tests.unit.raylens.jobs.conftest import FakeService, serving

__all__ = ["event_loop_policy", "http", "model", "parts", "queue", "webhook_client"]
BLOB = make_reference(compute_digest(VIDEO))


def chat_job(*content: Any) -> dict[str, Any]:
    return {"job_type": "chat", "input": {"messages": [{"role": "user", "content": content}]}}


async def run(
    http: httpx.AsyncClient, queue: JobQueue, body: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a job as submitted, and as it ended."""
    job = await submit(http, body)
    async with serving(queue):
        return job, await wait_until_ended(http, job["id"])


def record_files(model: FakeService) -> list[MediaFile]:
    """Return the list to which the model will add the files that it is asked about."""
    files: list[MediaFile] = []

    def answer(request: VisionRequest, media: Sequence[MediaFile]) -> str:
        files.extend(media)
        return "a red circle"

    model.answer = answer
    return files


@pytest.mark.parametrize(
    ("part", "rate"),
    [
        ({"type": "video_url", "video_url": {"url": VIDEO_URL}}, (2.0, None)),
        ({"type": "video_url", "video_url": VIDEO_URL, "fps": 4, "max_frames": 8}, (4.0, 8)),
        ({"type": "video", "video": BASE64, "fps": 0.5}, (0.5, None)),
        ({"video": {"url": VIDEO_URL, "fps": 1}}, (1.0, None)),
    ],
)
async def test_a_job_answers_about_a_video_file(
    model: FakeService,
    http: httpx.AsyncClient,
    queue: JobQueue,
    part: dict[str, Any],
    rate: tuple[float, int | None],
) -> None:
    picture = {"type": "image_url", "image_url": DATA_URL}
    files = record_files(model)
    job, done = await run(http, queue, chat_job(picture, part, "What moves?"))
    assert BASE64 not in str(job)
    assert BLOB in str(job)
    assert done["output"] == {"answer": "a red circle", "model": "moondream"}
    (request,) = model.requests
    assert isinstance(request.task, Chat)
    parts = request.task.messages[0].parts
    assert parts == (ImagePart(0), VideoPart((1,), rate[0]), TextPart("What moves?"))
    assert files[0].data == PICTURE
    assert isinstance(files[1], VideoFile)
    assert (files[1].data, files[1].frames_per_second, files[1].max_frames) == (VIDEO, *rate)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": [DATA_URL] * 3},
        {"type": "video_url", "video_url": {"url": JPEGS}},
        {"type": "video_url", "video_url": JPEGS},
    ],
)
async def test_a_job_answers_about_frames(
    model: FakeService, http: httpx.AsyncClient, queue: JobQueue, part: dict[str, Any]
) -> None:
    files = record_files(model)
    _, done = await run(http, queue, chat_job(part, "What moves?"))
    assert done["status"] == "succeeded", done["error"]
    (request,) = model.requests
    assert isinstance(request.task, Chat)
    assert request.task.messages[0].parts[0] == VideoPart((0, 1, 2), 2.0)
    assert all(isinstance(file, PictureFile) and file.data == PICTURE for file in files)


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ({"video_url": "data:video/mp4;base64,AAA!"}, 422,
         "input.messages.0.content.0.video_url: invalid base64"),
        ({"video_url": {"url": DATA_URL}}, 415,
         "input.messages.0.content.0.video_url.url: not a video"),
        ({"video": [DATA_URL, VIDEO_URL]}, 415,
         "input.messages.0.content.0.video.1: not a picture"),
        ({"video": [DATA_URL] * 40}, 422,
         "input.messages.0.content.0.video: 40 frames; the limit is 32"),
        ({"video": [DATA_URL]}, 422, "input.messages.0.content.0.video: List should have at least"),
        ({"video": 5}, 422, "input.messages.0.content.0.video"),
    ],
)  # fmt: skip
async def test_what_is_no_video_is_refused_at_submission(
    http: httpx.AsyncClient, part: dict[str, Any], status: int, message: str
) -> None:
    response = await http.post(PATH, json=chat_job(part))
    assert response.status_code == status, response.text
    assert message in response.text


async def test_a_job_takes_as_many_videos_as_a_request(http: httpx.AsyncClient) -> None:
    response = await http.post(PATH, json=chat_job(*[{"video": VIDEO_URL}] * 9))
    assert response.status_code == 422
    assert "input: 9 videos; the limit is" in response.text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "url": BLOB},
        {"type": "image", "source": {"type": "url", "url": BLOB}},
        {"type": "image_url", "image_url": {"url": BLOB}},
        {"type": "video", "video": BLOB},
    ],
)
async def test_a_job_reads_no_files_of_other_jobs(
    http: httpx.AsyncClient, part: dict[str, Any]
) -> None:
    assert (await http.post(PATH, json=chat_job({"video": VIDEO_URL}))).status_code == 202
    response = await http.post(PATH, json=chat_job(part))
    assert response.status_code == 422
    assert "blob: URLs are not supported" in response.text
