"""Limits of one client: a key, or an address if there are no keys."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI

from raylens.api.app import create_app
from raylens.api.middleware import REPEATED_HEADER
from raylens.api.shared import Shared
from raylens.core.config import AppConfig
from raylens.core.key_source import CHECK_S, KeySource
from raylens.core.keys import hash_key
from raylens.core.leases import Leases
from raylens.core.ledger import Budget
from raylens.core.live_settings import live_view
from raylens.jobs.blobs import BlobStorage
from raylens.jobs.job import new_id
from raylens.jobs.memory import MemoryStore
from testing.pictures import encode_picture, gradient
from testing.virtual_time import VirtualClock, VirtualTimePolicy
from tests.unit.raylens.api.conftest import CONFIG, DATA_URL, PICTURE, FakeService
from tests.unit.raylens.core.test_leases import FakeClock, SharedLedger
from tests.unit.raylens.jobs.conftest import FakeService as JobModel
from tests.unit.raylens.jobs.conftest import FakeWebhookClient, QueueParts

ANN, BOB = "rl-ann", "rl-bob"
QUERY = {"image_url": DATA_URL, "question": "How many?"}
JOB = {"job_type": "caption", "input": {"image": DATA_URL}}
PATH = "/v1/query"
OTHER_PICTURE = base64.b64encode(encode_picture(gradient(12, 16))).decode()
OTHER_JOB = {"job_type": "caption", "input": {"image": OTHER_PICTURE}}


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


def configure(limits: dict[str, Any], of_ann: dict[str, Any] | None = None) -> AppConfig:
    """Return a configuration with limits; with ``of_ann``, it has keys, and these are Ann's."""
    config = {**CONFIG.model_dump(exclude_unset=True), "client_limits": limits}
    if of_ann is not None:
        ann = {"name": "ann", "hash": hash_key(ANN), "limits": of_ann}
        config["auth"] = {"keys": [ann, {"name": "bob", "hash": hash_key(BOB)}]}
    return AppConfig.model_validate(config)


def make_app(service: FakeService, config: AppConfig, store: MemoryStore | None = None) -> FastAPI:
    clock = VirtualClock()
    blobs = BlobStorage(f"memory://{new_id()}")
    store = store or MemoryStore(clock)
    parts = QueueParts(clock, store, blobs, JobModel(), FakeWebhookClient(), config)
    return create_app(service, config, parts.make_queue())


@asynccontextmanager
async def connect(
    app: FastAPI, key: str | None = None, address: str = "192.0.2.1"
) -> AsyncIterator[httpx.AsyncClient]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    ) as client:
        yield client


async def test_requests_beyond_the_rate_are_a_429_that_says_when(service: FakeService) -> None:
    app = make_app(service, configure({"requests_per_minute": 3}))
    async with connect(app) as client:
        answers = [await client.post(PATH, json=QUERY) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert len(service.requests) == 3
    first, *_, refused = answers
    assert first.headers["RateLimit-Policy"] == '"requests";q=3;w=60'
    assert first.headers["RateLimit"] == '"requests";r=2;t=20'
    assert first.headers["X-RateLimit-Limit-Requests"] == "3"
    assert first.headers["X-RateLimit-Remaining-Requests"] == "2"
    assert first.headers["X-RateLimit-Reset-Requests"] == "20s"
    assert refused.json() == {"detail": "your limit of 3 requests a minute is used up"}
    assert 1 <= int(refused.headers["Retry-After"]) <= 20
    assert refused.headers["RateLimit"].startswith('"requests";r=0;')


async def test_addresses_have_limits_of_their_own(service: FakeService) -> None:
    app = make_app(service, configure({"requests_per_minute": 1}))
    for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"):
        async with connect(app, address=address) as client:
            assert (await client.post(PATH, json=QUERY)).status_code == 200
            assert (await client.post(PATH, json=QUERY)).status_code == 429
    async with connect(app, address="2001:db8::2") as same_network:
        assert (await same_network.post(PATH, json=QUERY)).status_code == 429


async def test_a_key_has_its_own_limits_before_the_common_ones(service: FakeService) -> None:
    config = configure(
        {"requests_per_minute": 1, "tokens_per_minute": 100_000},
        {"requests_per_minute": 2},
    )
    app = make_app(service, config)
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        ann_answers = [await ann.post(PATH, json=QUERY) for _ in range(3)]
        bob_answers = [await bob.post(PATH, json=QUERY) for _ in range(2)]
    assert [answer.status_code for answer in ann_answers] == [200, 200, 429]
    assert [answer.status_code for answer in bob_answers] == [200, 429]
    assert '"tokens";q=100000' in ann_answers[0].headers["RateLimit-Policy"]


async def test_null_lifts_a_limit_for_a_key(service: FakeService) -> None:
    app = make_app(service, configure({"requests_per_minute": 1}, {"requests_per_minute": None}))
    async with connect(app, ANN) as ann:
        answers = [await ann.post(PATH, json=QUERY) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert "RateLimit" not in answers[0].headers


async def test_tokens_count_when_an_answer_has_ended(service: FakeService) -> None:
    app = make_app(service, configure({"tokens_per_minute": 20}))
    statuses = []
    async with connect(app) as client:
        for _ in range(10):
            statuses.append((await client.post(PATH, json=QUERY)).status_code)
            await asyncio.sleep(0)
        refused = await client.post(PATH, json=QUERY)
    assert statuses[0] == 200
    assert 429 in statuses
    assert statuses == sorted(statuses)  # none is let in between
    assert refused.json()["detail"] == "your limit of 20 tokens a minute is used up"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_reads_count_towards_no_limit(service: FakeService, method: str) -> None:
    limits = {"requests_per_minute": 1, "max_in_flight": 1, "tokens_per_minute": 1}
    app = make_app(service, configure(limits))
    async with connect(app) as client:
        for _ in range(5):
            assert (await client.request(method, "/health")).status_code != 429


async def test_requests_in_flight_are_limited(service: FakeService) -> None:
    service.delay_s = 5.0
    app = make_app(service, configure({"max_in_flight": 2}))
    async with connect(app) as client, connect(app, address="192.0.2.2") as other:
        answers = await asyncio.gather(
            *(client.post(PATH, json=QUERY) for _ in range(5)), other.post(PATH, json=QUERY)
        )
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429, 429]
        assert answers[-1].status_code == 200
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.json()["detail"] == "your limit of 2 requests in flight at a time is reached"
        assert refused.headers["Retry-After"] == "1"
        assert (await client.post(PATH, json=QUERY)).status_code == 200


REPEATED = {REPEATED_HEADER: "1"}


async def test_a_repeated_request_costs_no_rate(service: FakeService) -> None:
    app = make_app(service, configure({"requests_per_minute": 2}))
    async with connect(app) as client:
        first = await client.post(PATH, json=QUERY)
        again = await client.post(PATH, json=QUERY, headers=REPEATED)
        assert first.headers["RateLimit"] == again.headers["RateLimit"]
        assert (await client.post(PATH, json=QUERY)).status_code == 200
        assert (await client.post(PATH, json=QUERY)).status_code == 429
        assert (await client.post(PATH, json=QUERY, headers=REPEATED)).status_code == 200


async def test_who_marks_requests_as_repeated_has_its_rate_twice(service: FakeService) -> None:
    app = make_app(service, configure({"requests_per_minute": 3}))
    async with connect(app) as client:
        answers = [await client.post(PATH, json=QUERY, headers=REPEATED) for _ in range(9)]
    assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 3


async def test_who_marks_requests_as_repeated_has_its_tokens_twice(service: FakeService) -> None:
    app = make_app(service, configure({"tokens_per_minute": 20}))
    answered = []
    async with connect(app) as client:
        for headers in ({}, REPEATED):
            answers = []
            for _ in range(20):
                answers.append(await client.post(PATH, json=QUERY, headers=headers))
                await asyncio.sleep(0)
            answered.append(sum(answer.status_code == 200 for answer in answers))
    assert 1 <= answered[1] <= answered[0] < 20


async def test_a_repeated_request_takes_a_place_that_its_dead_replica_still_holds(
    service: FakeService,
) -> None:
    service.delay_s = 5.0
    clock = FakeClock()
    ledger = SharedLedger(clock)
    dead = Leases(ledger, clock)
    config = configure({"max_in_flight": 2})
    shared = Shared(config, leases=Leases(ledger, clock))
    app = create_app(service, config, shared=shared)
    places = Budget("192.0.2.1", "requests in flight", 2)
    async with connect(app) as client, dead.hold(places), dead.hold(places):
        assert (await client.post(PATH, json=QUERY)).status_code == 429
        # Only as many as there may have been.
        calls = (client.post(PATH, json=QUERY, headers=REPEATED) for _ in range(5))
        answers = await asyncio.gather(*calls)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]


async def test_a_refused_body_is_not_read(service: FakeService) -> None:
    app = make_app(service, configure({"requests_per_minute": 1}))
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(3):
            read += 1
            yield b" "

    async with connect(app) as client:
        await client.post(PATH, json=QUERY)
        headers = {"Content-Type": "application/json"}
        refused = await client.post(PATH, content=body(), headers=headers)
        assert refused.status_code == 429
    assert read <= 1


async def test_queued_jobs_are_limited_for_each_client(service: FakeService) -> None:
    app = make_app(service, configure({"max_queued_jobs": 2}, {}))
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        answers = [await ann.post("/api/v1/jobs", json=JOB) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert answers[-1].json()["detail"] == "your limit of 2 queued jobs is reached"
        assert "Retry-After" in answers[-1].headers
        assert (await bob.post("/api/v1/jobs", json=JOB)).status_code == 202


async def test_a_job_that_is_retried_counts_too(service: FakeService) -> None:
    app = make_app(service, configure({"max_queued_jobs": 1}, {}))
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        first = (await ann.post("/api/v1/jobs", json=JOB)).json()["id"]
        await ann.delete(f"/api/v1/jobs/{first}")
        assert (await ann.post("/api/v1/jobs", json=JOB)).status_code == 202
        retried = await ann.put(f"/api/v1/jobs/{first}")
        assert retried.status_code == 429
        assert retried.json()["detail"] == "your limit of 1 queued jobs is reached"
        assert int(retried.headers["Retry-After"]) >= 1
        assert (await bob.post("/api/v1/jobs", json=JOB)).status_code == 202


async def test_bytes_of_stored_pictures_are_limited_for_each_client(service: FakeService) -> None:
    app = make_app(service, configure({"max_picture_bytes": 1000}, {}))
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        upload = {"file": ("a.jsonl", b"x" * 700)}
        purpose = {"purpose": "batch"}
        first = await ann.post("/v1/files", files=upload, data=purpose)
        assert first.status_code == 200, first.text
        upload = {"file": ("b.jsonl", b"y" * 700)}
        refused = await ann.post("/v1/files", files=upload, data=purpose)
        assert refused.status_code == 429
        assert refused.json()["error"]["message"] == (
            "your jobs and files would take 1400 bytes; your limit is 1000 bytes"
        )
        assert (await bob.post("/v1/files", files=upload, data=purpose)).status_code == 200
        await ann.delete(f"/v1/files/{first.json()['id']}")
        assert (await ann.post("/v1/files", files=upload, data=purpose)).status_code == 200


async def test_pictures_of_refused_jobs_are_not_stored(service: FakeService) -> None:
    store = MemoryStore(VirtualClock())
    app = make_app(service, configure({"max_queued_jobs": 1}, {}), store)
    async with connect(app, ANN) as ann:
        assert (await ann.post("/api/v1/jobs", json=JOB)).status_code == 202
        assert (await ann.post("/api/v1/jobs", json=OTHER_JOB)).status_code == 429
    assert await store.mark_unused_blobs(math.inf, 0, 0, 10) == []


async def test_a_picture_that_is_sent_again_takes_no_more_room(service: FakeService) -> None:
    limit = int(1.5 * len(PICTURE))
    app = make_app(service, configure({"max_picture_bytes": limit}, {}))
    async with connect(app, ANN) as ann:
        answers = await asyncio.gather(*(ann.post("/api/v1/jobs", json=JOB) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {202}
        assert (await ann.post("/api/v1/jobs", json=OTHER_JOB)).status_code == 429


async def test_a_large_upload_that_is_refused_pushes_out_no_small_one(
    service: FakeService,
) -> None:
    app = make_app(service, configure({"max_picture_bytes": 1000}, {}))
    async with connect(app, ANN) as ann:
        uploads = [
            ann.post("/v1/files", files={"file": ("a", data)}, data={"purpose": "batch"})
            for data in (b"x" * 2000, b"y" * 500)
        ]
        answers = await asyncio.gather(*uploads)
    assert [answer.status_code for answer in answers] == [429, 200]


async def test_event_streams_are_limited_for_each_client(service: FakeService) -> None:
    app = make_app(service, configure({"max_event_streams": 1}, {}))
    async with connect(app, ANN) as ann, connect(app, BOB) as bob:
        ids = {}
        for name, client in (("ann", ann), ("bob", bob)):
            ids[name] = (await client.post("/api/v1/jobs", json=JOB)).json()["id"]
        first = asyncio.create_task(ann.get(f"/api/v1/jobs/{ids['ann']}/events"))
        await asyncio.sleep(1)
        refused = await ann.get(f"/api/v1/jobs/{ids['ann']}/events")
        assert refused.status_code == 429
        of_bob = asyncio.create_task(bob.get(f"/api/v1/jobs/{ids['bob']}/events"))
        await asyncio.sleep(1)
        assert not of_bob.done()
        for name, client in (("ann", ann), ("bob", bob)):
            await client.delete(f"/api/v1/jobs/{ids[name]}")
        assert (await first).status_code == (await of_bob).status_code == 200


class TestKeysFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "keys.yaml"

    def write(self, path: Path, *names: str, **limits: Any) -> None:
        keys = [{"name": name, "hash": hash_key(f"rl-{name}"), "limits": limits} for name in names]
        path.write_text(yaml.safe_dump({"keys": keys}))

    def make_source(self, path: Path) -> tuple[KeySource, list[float]]:
        config = {**CONFIG.model_dump(exclude_unset=True), "auth": {"keys_file": str(path)}}
        now = [0.0]
        return KeySource(AppConfig.model_validate(config), lambda: now[0]), now

    def test_a_change_counts_without_a_restart(self, path: Path) -> None:
        self.write(path, "ann")
        source, now = self.make_source(path)
        assert source.ring.find(ANN) is not None
        self.write(path, "bob", requests_per_minute=7)
        now[0] += CHECK_S
        assert source.ring.find(ANN) is None
        assert source.ring.find(BOB) is not None
        assert source.limits_of("bob").requests_per_minute == 7
        assert source.limits_of("ann").requests_per_minute is None

    def test_the_file_is_looked_at_once_in_a_period(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(path, "ann")
        source, now = self.make_source(path)
        looks: list[tuple[int, ...]] = []
        look = source._read_version

        def count_and_look() -> tuple[int, ...]:
            looks.append(look())
            return looks[-1]

        monkeypatch.setattr(source, "_read_version", count_and_look)
        for _ in range(10):
            now[0] += CHECK_S / 4
            assert source.ring.find(ANN) is not None
        assert len(looks) == 2

    def test_other_keys_of_a_changed_configuration_count_at_once(self, path: Path) -> None:
        self.write(path, "ann")
        configs = [
            AppConfig.model_validate({**CONFIG.model_dump(exclude_unset=True), "auth": auth})
            for auth in (
                {"keys_file": str(path)},
                {"keys": [{"name": "bob", "hash": hash_key(BOB)}]},
            )
        ]
        source = KeySource(live_view(lambda: configs[0]), lambda: 0.0)
        assert source.ring.find(ANN) is not None
        del configs[0]
        assert source.ring.find(ANN) is None
        assert source.ring.find(BOB) is not None

    @pytest.mark.parametrize("broken", ["keys: []", "keys: [{name: x}]", "a: [", ""])
    def test_a_broken_file_changes_nothing(
        self, path: Path, broken: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.write(path, "ann")
        source, now = self.make_source(path)
        path.write_text(broken)
        now[0] += CHECK_S
        assert source.ring.find(ANN) is not None
        assert "the former keys stay in force" in caplog.text
        path.unlink()
        now[0] += CHECK_S
        assert source.ring.find(ANN) is not None
        self.write(path, "bob")
        now[0] += CHECK_S
        assert source.ring.find(ANN) is None
