"""Limits of clients over two replicas of the ingress, with the ledger and without it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from raylens.cli.processes import find_marked
from testing.pictures import encode_picture, gradient
from testing.server import running_server
from tests.serve.conftest import ROOT

MARK = f"raylens-limits-{uuid.uuid4().hex}"
REPLICAS = 2
PER_MINUTE = 30
AT_ONCE = 3
QUERY = "/v1/query"


def limit(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    args = application["args"]
    args["models"] = [model for model in args["models"] if model["name"] == "smolvlm"]
    args["client_limits"] = {"requests_per_minute": PER_MINUTE, "max_in_flight": AT_ONCE}
    names = {"Ingress", "Preprocessor", "smolvlm"}
    application["deployments"] = [d for d in application["deployments"] if d["name"] in names]
    application["deployments"][0]["num_replicas"] = REPLICAS


@pytest.fixture(scope="module")
def limited() -> Iterator[str]:
    with running_server(ROOT / "serve_config.yaml", limit, {"RAYLENS_TEST": MARK}) as url:
        yield url


def find_ledger() -> psutil.Process:
    processes = [psutil.Process(process.pid) for process in find_marked("RAYLENS_TEST", MARK)]
    (ledger,) = [each for each in processes if "LedgerActor" in " ".join(each.cmdline())]
    return ledger


async def ask(
    url: str, count: int, at_once: int, address: str = "127.0.0.1"
) -> list[httpx.Response]:
    """Send ``count`` questions from an address, ``at_once`` at a time, each over a connection of
    its own."""
    picture = encode_picture(gradient(64, 64))
    slots = asyncio.Semaphore(at_once)

    async def send() -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(local_address=address)
        async with (
            slots,
            httpx.AsyncClient(base_url=url, timeout=60, transport=transport) as client,
        ):
            form = {"question": "How many shapes are there?"}
            return await client.post(QUERY, files={"file": picture}, data=form)

    return list(await asyncio.gather(*(send() for _ in range(count))))


async def ask_for_a_while(url: str, count: int) -> tuple[list[httpx.Response], float]:
    """Send questions one after the other. Returns how many the rate has allowed anew meanwhile,
    too."""
    started = time.monotonic()
    answers = await ask(url, count, 1)
    return answers, (time.monotonic() - started) * PER_MINUTE / 60


async def test_a_rate_holds_over_all_replicas_and_without_the_ledger(limited: str) -> None:
    first, refilled = await ask_for_a_while(limited, 80)
    statuses = Counter(response.status_code for response in first)
    assert statuses.keys() == {200, 429}
    assert PER_MINUTE <= statuses[200] <= PER_MINUTE + refilled + 1
    ledger = find_ledger()
    ledger.kill()
    ledger.wait()
    answers, refilled = await ask_for_a_while(limited, 40)
    refused = [response for response in answers if response.status_code == 429]
    assert len(refused) >= 40 - PER_MINUTE // REPLICAS - refilled - 1
    assert {response.status_code for response in answers} <= {200, 429}
    assert int(refused[0].headers["Retry-After"]) >= 1


async def test_requests_in_flight_are_limited_over_all_replicas(limited: str) -> None:
    # Another address has a whole rate of its own.
    answers = await ask(limited, 8 * AT_ONCE, 8 * AT_ONCE, "127.0.0.2")
    assert 200 in {answer.status_code for answer in answers}
    reasons = {answer.json()["detail"] for answer in answers if answer.status_code == 429}
    assert f"your limit of {AT_ONCE} requests in flight at a time is reached" in reasons
