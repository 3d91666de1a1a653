"""Videos in the forms in which clients send them."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from raylens.core.types import Chat, ImagePart, PictureFile, TextPart, VideoFile, VideoPart
from tests.unit.raylens.api.conftest import DATA_URL, PICTURE, FakeService, chat, image

VIDEO = b"\0\0\0\x18ftypmp42" + bytes(100)
BASE64 = base64.b64encode(VIDEO).decode()
VIDEO_URL = f"data:video/mp4;base64,{BASE64}"
JPEGS = "data:video/jpeg;base64," + ",".join([base64.b64encode(PICTURE).decode()] * 3)
CHAT = "/v1/chat/completions"
GENERATE = "/api/v1/generate"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "video_url", "video_url": {"url": VIDEO_URL}}, (2.0, None)),
        ({"type": "video_url", "video_url": VIDEO_URL}, (2.0, None)),
        ({"video_url": {"url": VIDEO_URL, "fps": 4}}, (4.0, None)),
        ({"type": "video_url", "video_url": {"url": VIDEO_URL}, "fps": 1}, (1.0, None)),
        ({"type": "video", "video": VIDEO_URL, "fps": 0.5, "max_frames": 8}, (0.5, 8)),
        ({"type": "video", "video": VIDEO_URL, "nframes": 6, "fps": None}, (2.0, 6)),
    ],
)
async def test_a_video_file_is_sampled_as_asked(
    client: httpx.AsyncClient, service: FakeService, part: dict[str, Any], expected: Any
) -> None:
    response = await client.post(CHAT, json=chat(image(), part, "What moves?"))
    assert response.status_code == 200, response.text
    task = service.requests[0].task
    assert isinstance(task, Chat)
    fps, max_frames = expected
    assert task.messages[0].parts == (ImagePart(0), VideoPart((1,), fps), TextPart("What moves?"))
    picture, video = service.media
    assert isinstance(picture, PictureFile)
    assert isinstance(video, VideoFile)
    assert video.data == VIDEO
    assert (video.frames_per_second, video.max_frames) == (fps, max_frames)


@pytest.mark.parametrize("video", [VIDEO_URL, BASE64])
async def test_the_generate_dialect_takes_videos(
    client: httpx.AsyncClient, service: FakeService, video: str
) -> None:
    content = [{"type": "video", "video": video}, {"type": "text", "text": "What moves?"}]
    body = {"messages": [{"role": "user", "content": content}]}
    assert (await client.post(GENERATE, json=body)).status_code == 200
    (file,) = service.media
    assert isinstance(file, VideoFile)
    assert (file.data, file.field) == (VIDEO, "messages.0.content.0.video")


async def test_a_data_url_of_jpegs_is_a_list_of_frames(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    part = {"type": "video_url", "video_url": {"url": JPEGS}}
    assert (await client.post(CHAT, json=chat(part))).status_code == 200
    task = service.requests[0].task
    assert isinstance(task, Chat)
    assert task.messages[0].parts == (VideoPart((0, 1, 2)),)
    assert service.pictures == [PICTURE] * 3


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ({"type": "video_url", "video_url": {}}, 400, "messages.0.content.0: expected the video"),
        ({"type": "video"}, 400, "messages.0.content.0: expected the video in video"),
        ({"type": "video_url", "video_url": {"url": "ftp://a/b"}}, 400,
         "messages.0.content.0.video_url.url: ftp: URLs are not supported; expected the video"),
        ({"type": "video", "video": "data:video/mp4;base64,!"}, 400,
         "messages.0.content.0.video: invalid base64"),
        ({"type": "video", "video": "data:video/mp4;base64,"}, 400,
         "messages.0.content.0.video: the video is empty"),
        ({"type": "video", "video": VIDEO_URL, "fps": 0}, 400,
         "messages.0.content.0.video_url.fps"),
        ({"type": "video", "video": VIDEO_URL, "max_frames": 1}, 400,
         "messages.0.content.0.video_url.max_frames"),
        ({"type": "video", "video": 5}, 400, "messages.0.content.0.video_url: "),
    ],
)  # fmt: skip
async def test_an_invalid_video_is_refused_with_the_fields_name(
    client: httpx.AsyncClient, part: dict[str, Any], status: int, message: str
) -> None:
    response = await client.post(CHAT, json=chat(part))
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(message)


async def test_videos_and_pictures_have_limits_of_their_own(client: httpx.AsyncClient) -> None:
    video = {"type": "video", "video": VIDEO_URL}
    response = await client.post(CHAT, json=chat(*[video] * 5))
    assert response.json()["error"]["message"] == "messages: 5 videos; the limit is 4"
    frames = {"type": "video", "video": [DATA_URL] * 32}
    assert (await client.post(CHAT, json=chat(frames))).status_code == 200
    response = await client.post(CHAT, json=chat("x", {**frames, "video": [DATA_URL] * 33}))
    message = "messages.0.content.1.video: 33 frames; the limit is 32"
    assert response.json()["error"]["message"] == message
    response = await client.post(CHAT, json=chat(video, *[frames] * 4))
    assert response.json()["error"]["message"] == "messages: 5 videos; the limit is 4"
