"""The page at /: its files, their headers, and what it learns about the server."""

from __future__ import annotations

import re
from importlib.resources import files

import httpx
import pytest

from raylens.api.app import create_app
from raylens.api.playground import MEDIA_TYPES, load_files
from raylens.core.config import AppConfig
from raylens.core.keys import hash_key
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, FakeService

HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}
MAX_PAGE_BYTES = 150_000
NEEDED: dict[str, dict[str, str]] = {
    "caption": {},
    "query": {"question": "?"},
    "detect": {"object": "cat"},
    "point": {"object": "cat"},
}
"""What a body of each task must have, beside the picture."""


async def test_a_browser_gets_the_page_and_others_a_line_of_text(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<div id="app">' in page.text
    for headers in ({}, {"Accept": "application/json"}):
        other = await client.get("/", headers=headers)
        assert other.text == "raylens is running; /docs describes its API"
        assert "Accept" in other.headers["vary"]


@pytest.mark.parametrize("root", ["", "/vision"])
async def test_every_address_of_the_page_and_its_modules_leads_to_a_file(
    service: FakeService, root: str
) -> None:
    transport = httpx.ASGITransport(create_app(service, CONFIG), root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        base = f"http://localhost{root}/"
        page = await client.get(base, headers=HTML)
        addresses = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert not [address for address in addresses if address.startswith(("/", "http"))]
        found = {httpx.URL(base).join(address) for address in addresses}
        while found:
            url = found.pop()
            answer = await client.get(url)
            assert answer.status_code == 200, url
            if url.path.endswith(".js"):
                imports = re.findall(r"^import .* from '(.+)'$", answer.text, re.MULTILINE)
                assert all(name.startswith("./") for name in imports)
                for name in imports:
                    module = url.join(name)
                    assert f'"{module.path.removeprefix(f"{root}/")}"' in page.text  # preloaded


async def test_every_file_has_its_type_and_is_no_other(client: httpx.AsyncClient) -> None:
    for name in load_files():
        if name == "index.html":
            continue
        answer = await client.get(f"/playground/{name}")
        assert answer.headers["content-type"] == MEDIA_TYPES[name[name.rindex(".") :]]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.content == (files("raylens") / "playground" / name).read_bytes()


@pytest.mark.parametrize(
    "name",
    ["", "nothing.js", "index.html", "../app.py", "%2e%2e/py.typed", "examples", "./app.js/"],
)
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/playground/{name}")).status_code == 404


@pytest.mark.parametrize("path", ["/", "/playground/app.js"])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_file_that_the_browser_has_is_not_sent_again(
    client: httpx.AsyncClient, path: str, encoding: str
) -> None:
    headers = {**HTML, "Accept-Encoding": encoding}
    first = await client.get(path, headers=headers)
    assert first.headers.get("content-encoding", "identity") == encoding
    assert first.headers["cache-control"] == "no-cache"
    assert "Accept-Encoding" in first.headers["vary"]
    again = await client.get(path, headers={**headers, "If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    changed = await client.get(path, headers={**headers, "If-None-Match": '"another"'})
    assert changed.status_code == 200
    head = await client.head(path, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]


async def test_the_page_runs_and_calls_nothing_but_this_server(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/", headers={**HTML, "Host": "localhost:8000"})).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "connect-src 'self' ws://localhost:8000 wss://localhost:8000;" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "camera=(self)" in headers["permissions-policy"]
    assert "microphone=()" in headers["permissions-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    page = (files("raylens") / "playground" / "index.html").read_text()
    assert not re.findall(r"<style|\son\w+=|style=|<script(?! type=\"module\" src=)", page)


async def test_a_host_can_not_add_to_the_policy(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", headers={**HTML, "Host": "localhost; script-src *"})
    assert answer.status_code == 421


async def test_the_page_is_light() -> None:
    sizes = {
        name: len(file.compressed or file.content)
        for name, file in load_files().items()
        if not name.startswith("examples/") and not name.endswith(".txt")
    }
    assert sum(sizes.values()) <= MAX_PAGE_BYTES, sizes
    examples = [file for name, file in load_files().items() if name.endswith((".jpg", ".png"))]
    assert len(examples) == 3
    assert all(len(file.content) <= 60_000 for file in examples)


async def test_files_need_no_key_and_what_they_ask_does(service: FakeService) -> None:
    keys = [{"name": "me", "hash": hash_key("rl-me")}]
    config = AppConfig.model_validate(
        {**CONFIG.model_dump(exclude_unset=True), "auth": {"keys": keys}}
    )
    transport = httpx.ASGITransport(create_app(service, config))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in ("/", "/playground/app.js", "/playground/examples/scene.png"):
            assert (await client.get(path, headers=HTML)).status_code == 200
        assert (await client.get("/api/v1/playground")).status_code == 401
        headers = {"Authorization": "Bearer rl-me"}
        assert (await client.get("/api/v1/playground", headers=headers)).status_code == 200


async def test_the_page_learns_the_limits_and_the_settings(client: httpx.AsyncClient) -> None:
    server = (await client.get("/api/v1/playground")).json()
    assert server["limits"] == {
        "image_bytes": 20_000,
        "image_pixels": 64_000_000,
        "min_image_side": 4,
        "max_image_side": 16_384,
        "images": CONFIG.limits.max_images,
        "videos": 4,
        "video_bytes": 64 * 2**20,
        "video_seconds": 3600,
        "body_bytes": CONFIG.limits.max_body_bytes,
        "text_chars": CONFIG.limits.max_text_chars,
    }
    assert server["models"] == ["smolvlm", "other"]
    assert server["downloads"] is True
    properties = server["request_schema"]["properties"]
    assert properties["recipe"]["enum"] == ["", "plain", "auto", "enhanced", "mine"]
    assert (properties["max_tokens"]["default"], properties["max_tokens"]["maximum"]) == (50, 100)


async def test_every_hint_names_a_field_that_its_tasks_accept(
    client: httpx.AsyncClient, service: FakeService
) -> None:
    server = (await client.get("/api/v1/playground")).json()
    pipelines = (await client.get("/api/v1/pipelines/schemas")).json()["pipelines"]
    live = pipelines["moondream"]["config_schema"]["properties"]
    settings = {**live, **server["request_schema"]["properties"]}
    asked = {name: field for name, field in settings.items() if "request" in field.get("ui", {})}
    assert len(asked) >= 8
    service.tasks = {"smolvlm": ("caption", "query", "detect", "point", "reason")}
    for name, field in asked.items():
        for task in field["ui"].get("features", NEEDED):
            body = {"image_url": DATA_URL, **NEEDED[task]}
            section, _, key = field["ui"]["request"].rpartition(".")
            bad = {**body, section: {key: [1]}} if section else {**body, key: [1]}
            answer = await client.post(f"/v1/{task}", json=bad)
            assert answer.status_code == 400, (name, task)
            assert field["ui"]["request"] in answer.json()["detail"]
