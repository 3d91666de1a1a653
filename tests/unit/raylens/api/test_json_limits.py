"""Bodies of JSON that are small to send and dear to read."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import raylens.jobs.registry  # noqa: F401  (its types have bodies, too)
from raylens.api.app import create_app
from raylens.api.json_limits import LONG_STRING_BYTES, check_json
from raylens.core.config import RequestLimits
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.core.wire import MAX_PARTS, Body, split_frames
from tests.unit.raylens.api.conftest import CONFIG, FakeService

MAX_BYTES = 2**20
MAX_VALUES = 1000


def check(body: bytes) -> None:
    check_json(body, MAX_BYTES, MAX_VALUES)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b'{"a": 1}',
        b"\xef\xbb\xbf{}",
        b'{"image": "data:image/png;base64,' + b"A" * 3_000_000 + b'"}',
        b'{"image": "data:image\\/png;base64,' + b"A\\/" * 1_000_000 + b'"}',
        json.dumps({"text": '"quoted", \\"twice\\"' * 10_000}).encode(),
        json.dumps({"text": "[{,:" * 20_000}).encode(),
        json.dumps([["x"] * 10] * 80).encode(),
        json.dumps({"video": ["A" * 12_000] * 200}).encode(),
        json.dumps({str(number): "x" for number in range(990)}).encode(),
        b"\x89PNG\r\n\x1a\n" + bytes(2_000_000),
        b'{"never ends',
        b'{"never ends\\"',
    ],
)
def test_what_costs_little_passes(body: bytes) -> None:
    check(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" + b"1," * 2000, "body: over 1000 values"),
        (b" \n[" + b"[" * 2000, "body: over 1000 values"),
        (json.dumps({str(number): number for number in range(2000)}).encode(), "1000 values"),
        (json.dumps({"stop": ["a"] * 2000}).encode(), "body: over 1000 values"),
        (json.dumps({"a": "\\", "b": ["x"] * 2000}).encode(), "body: over 1000 values"),
        (json.dumps({"a": '\\\\"', "b": ["x"] * 2000}).encode(), "body: over 1000 values"),
        (b"{" + b" " * 2_000_000 + b"}", "body: over 1048576 bytes of JSON"),
        (b"{" + b'""' * 500_000, "body: over 1000 values"),
        (b" " * 2**20 + b"[" + b"[]," * 2000, "body: over 1000 values"),
        (b'{"a": "' + b'\\"' * 2_000_000 + b'"}', "body: over 1048576 bytes of a text"),
    ],
)
def test_what_costs_much_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(PayloadTooLarge, match=message):
        check(body)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_json_is_utf_8(encoding: str) -> None:
    with pytest.raises(InvalidRequest, match="UTF-8"):
        check('{"a": [1, 2]}'.encode(encoding))


def test_values_are_counted_as_the_parser_finds_them() -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = random_value(rng)
        body = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        count = count_values(value)
        if isinstance(value, (list, dict)):
            check_json(body, MAX_BYTES, max(1, count))
            with pytest.raises(PayloadTooLarge):
                check_json(body, MAX_BYTES, count_containers_and_commas(value) - 1)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    texts = ['a"b', "\\", '\\"', "[,{", "", "ä", LONG_STRING_BYTES * "x"]
    if depth == 3 or rng.random() < 0.3:
        return rng.choice([rng.choice(texts), 1, None])
    size = rng.randrange(4)
    if rng.random() < 0.5:
        return [random_value(rng, depth + 1) for _ in range(size)]
    return {f"{rng.choice(texts)}{n}": random_value(rng, depth + 1) for n in range(size)}


def count_values(value: Any) -> int:
    """Return the number of elements, and of lists and objects."""
    if not isinstance(value, (list, dict)):
        return 0
    items = list(value.values()) if isinstance(value, dict) else value
    return 1 + len(items) + sum(map(count_values, items))


def count_containers_and_commas(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    items = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(items) - 1) + sum(map(count_containers_and_commas, items))


@pytest.mark.parametrize(
    ("path", "read_message"),
    [
        ("/v1/chat/completions", lambda answer: answer["error"]["message"]),
        ("/v1/caption", lambda answer: answer["detail"]),
        ("/api/chat", lambda answer: answer["error"]),
        ("/api/v1/generate", lambda answer: answer["detail"]),
        ("/api/v1/pipeline/load", lambda answer: answer["detail"]),
    ],
)
@pytest.mark.parametrize("body", [{"stop": [1] * 9000}, {"x": [{}] * 5000}])
async def test_a_body_of_many_values_is_refused_in_the_dialects_shape(
    service: FakeService, path: str, read_message: Any, body: dict[str, Any]
) -> None:
    config = CONFIG.model_copy(update={"limits": RequestLimits(max_json_values=4000)})
    transport = httpx.ASGITransport(create_app(service, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post(path, json=body)
    assert response.status_code == 413
    assert read_message(response.json()) == "body: over 4000 values, which is the limit"


@pytest.mark.parametrize("path", ["/v1/caption", "/api/chat"])
@pytest.mark.parametrize("content_type", ["image/png", "text/plain", "", "multipart/x"])
async def test_json_is_measured_whatever_its_type(
    service: FakeService, path: str, content_type: str
) -> None:
    config = CONFIG.model_copy(update={"limits": RequestLimits(max_json_values=4000)})
    transport = httpx.ASGITransport(create_app(service, config))
    headers = {"Content-Type": content_type}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post(path, content=b"[" + b"[]," * 5000, headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize("field", ["recipe", "spatial_refs", "settings"])
async def test_json_within_a_text_is_limited(client: httpx.AsyncClient, field: str) -> None:
    text = "[" + "[]," * 30_000
    config = CONFIG.model_copy(update={"limits": RequestLimits()})
    transport = httpx.ASGITransport(create_app(FakeService(), config))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post("/v1/query", json={"question": "x", field: text})
        assert response.status_code == 400
        assert "the limit is 65536" in response.text or "not valid" not in response.text


async def test_a_form_in_a_url_is_limited() -> None:
    config = CONFIG.model_copy(update={"limits": RequestLimits()})
    transport = httpx.ASGITransport(create_app(FakeService(), config))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post("/v1/caption", content=b"a=1" + b"&" * 2**20, headers=headers)
        assert response.status_code == 413
        assert "multipart/form-data" in response.json()["detail"]


def test_a_video_of_a_million_frames_is_cut_off() -> None:
    frames = split_frames("data:video/jpeg;base64," + "," * 10**6)
    assert len(frames) == MAX_PARTS + 1


def all_bodies() -> Iterator[type[Body]]:
    left = [Body]
    while left:
        body = left.pop()
        left += body.__subclasses__()
        yield body


def unbounded_lists(schema: Any, path: str) -> Iterator[str]:
    if isinstance(schema, list):
        for number, item in enumerate(schema):
            yield from unbounded_lists(item, f"{path}.{number}")
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "array" and "maxItems" not in schema:
        yield path
    for key, item in schema.items():
        yield from unbounded_lists(item, f"{path}.{key}")


@pytest.mark.parametrize("body", sorted(set(all_bodies()), key=str), ids=lambda body: body.__name__)
def test_every_list_has_a_bound(body: type[Body]) -> None:
    assert list(unbounded_lists(body.model_json_schema(), "")) == []


@pytest.mark.parametrize(
    "body",
    [
        {"stop": [1] * 19_000},
        {"messages": [1] * 19_000},
        {"messages": [{"role": "user", "content": [1] * 9000}] * 2},
        {str(number): number for number in range(19_000)},
    ],
    ids=["stop", "messages", "parts", "keys"],
)
async def test_what_is_wrong_throughout_is_refused_at_once(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    """An error for each value would take longer than all else, and hundreds of megabytes."""
    config = CONFIG.model_copy(update={"limits": RequestLimits()})
    transport = httpx.ASGITransport(create_app(FakeService(), config))
    tracemalloc.start()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post("/v1/chat/completions", json=body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert response.status_code == 400
    assert peak < 30 * 2**20
