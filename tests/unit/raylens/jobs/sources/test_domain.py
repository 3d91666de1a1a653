"""The domain data source, against a small server of the assumed form."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from raylens.core.config import PictureSourceConfig
from raylens.core.errors import InvalidRequest, PayloadTooLarge
from raylens.jobs.sources.base import PictureGone, SourceUnavailable
from raylens.jobs.sources.domain import DomainSource

CONFIG = PictureSourceConfig(
    api_url="https://api.example", dds_url="https://dds.example", client_id="me"
)
LIMIT = 1000
ENTRIES = [
    {"id": "b", "name": "later", "data_type": "jpg", "created_at": "2026-01-01T00:00:02Z"},
    {"id": "a", "name": "first", "data_type": "image/png", "created_at": "2026-01-01T00:00:01Z"},
    {"id": "m", "name": "map", "data_type": "occupancy_grid"},
]


class Service:
    """The login service, the discovery service and the domain's server in one."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.valid_token = "domain-1"
        self.tokens = 0
        self.failure: httpx.Response | Exception | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(f"{request.method} {request.url.host}{request.url.path}")
        assert request.headers["posemesh-client-id"] == "me"
        if self.failure is not None:
            if isinstance(self.failure, Exception):
                raise self.failure
            return self.failure
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        match request.method, request.url.host, request.url.path:
            case "POST", "api.example", "/user/login":
                body = json.loads(request.content)
                is_known = body == {"email": "me@x.example", "password": "secret"}
                return _json({"access_token": "user"}) if is_known else httpx.Response(401)
            case "POST", "api.example", "/service/domains-access-token":
                assert bearer == "user"
                return _json({"access_token": "service"})
            case "POST", "dds.example", "/api/v1/domains/shop/auth":
                assert bearer == "service"
                self.tokens += 1
                token = f"domain-{self.tokens}"
                server = {"url": "https://data.example/"}
                return _json({"id": "shop", "access_token": token, "domain_server": server})
            case "GET", "data.example", path if bearer == self.valid_token:
                return self._data(path, request.url.params)
            case "GET", "data.example", _:
                return httpx.Response(401)
        return httpx.Response(404)

    def _data(self, path: str, params: httpx.QueryParams) -> httpx.Response:
        if path == "/api/v1/domains/shop/data":
            ids = params.get("ids")
            wanted = ids.split(",") if ids else [str(entry["id"]) for entry in ENTRIES]
            return _json({"data": [entry for entry in ENTRIES if entry["id"] in wanted]})
        assert params["raw"] == "true"
        return httpx.Response(200, content=f"picture {path[-1]}".encode())


def _json(value: Any) -> httpx.Response:
    return httpx.Response(200, json=value)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("POSEMESH_EMAIL", "me@x.example")
    monkeypatch.setenv("POSEMESH_PASSWORD", "secret")
    return Service()


@pytest.fixture
def source(service: Service) -> DomainSource:
    return DomainSource(CONFIG, httpx.MockTransport(service))


async def test_without_ids_all_pictures_of_the_domain_are_listed(
    service: Service, source: DomainSource
) -> None:
    pictures = await source.list_pictures("shop", [], LIMIT)
    assert [(picture.id, picture.name) for picture in pictures] == [("b", "later"), ("a", "first")]
    assert [picture.taken_at for picture in pictures] == [1767225602.0, 1767225601.0]
    assert await source.read("shop", pictures[1], 100) == b"picture a"
    assert service.calls == [
        "POST api.example/user/login",
        "POST api.example/service/domains-access-token",
        "POST dds.example/api/v1/domains/shop/auth",
        "GET data.example/api/v1/domains/shop/data",
        "GET data.example/api/v1/domains/shop/data/a",
    ]


async def test_named_entries_keep_their_order_whatever_their_type(source: DomainSource) -> None:
    pictures = await source.list_pictures("shop", ["m", "a"], LIMIT)
    assert [picture.id for picture in pictures] == ["m", "a"]
    with pytest.raises(InvalidRequest, match=r"query\.ids\.1: there is no picture 'z'"):
        await source.list_pictures("shop", ["a", "z"], LIMIT)


async def test_an_expired_token_is_renewed_once(service: Service, source: DomainSource) -> None:
    await source.list_pictures("shop", [], LIMIT)
    service.valid_token = "domain-2"
    assert len(await source.list_pictures("shop", [], LIMIT)) == 2
    service.valid_token = "never"
    with pytest.raises(SourceUnavailable, match="it answered 401"):
        await source.list_pictures("shop", [], LIMIT)


async def test_a_domain_is_needed(service: Service, source: DomainSource) -> None:
    with pytest.raises(InvalidRequest, match="domain_id: missing"):
        await source.list_pictures("", [], LIMIT)
    assert service.calls == []


async def test_many_that_find_a_token_expired_log_in_once(
    service: Service, source: DomainSource
) -> None:
    pictures = await source.list_pictures("shop", [], LIMIT)
    service.valid_token = "domain-2"
    await asyncio.gather(*(source.read("shop", picture, 100) for picture in pictures * 4))
    assert service.tokens == 2


async def test_a_picture_that_is_gone_is_told(service: Service, source: DomainSource) -> None:
    (picture,) = await source.list_pictures("shop", ["a"], LIMIT)
    service.failure = httpx.Response(404)
    with pytest.raises(PictureGone):
        await source.read("shop", picture, 100)


async def test_an_unknown_domain_is_refused(source: DomainSource) -> None:
    with pytest.raises(InvalidRequest, match="domain_id: there is no domain 'mall'"):
        await source.list_pictures("mall", [], LIMIT)


async def test_a_wrong_password_is_the_operators_problem(
    source: DomainSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEMESH_PASSWORD", "wrong")
    with pytest.raises(SourceUnavailable, match="it answered 401") as caught:
        await source.list_pictures("shop", [], LIMIT)
    assert "wrong" not in caught.value.message


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(500),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
)
async def test_a_service_that_is_away_can_be_asked_again(
    service: Service, source: DomainSource, failure: Any
) -> None:
    service.failure = failure
    with pytest.raises(SourceUnavailable) as caught:
        await source.list_pictures("shop", [], LIMIT)
    assert caught.value.retry_after
    service.failure = None
    assert len(await source.list_pictures("shop", [], LIMIT)) == 2


async def test_a_picture_over_the_limit_is_refused(source: DomainSource) -> None:
    (picture,) = await source.list_pictures("shop", ["a"], LIMIT)
    with pytest.raises(PayloadTooLarge, match="over 5 bytes"):
        await source.read("shop", picture, 5)
