"""The status of a real server: what was asked of two replicas of the ingress is what it counts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from raylens.api.answers.status import Status
from raylens.cli.processes import find_marked
from testing.pictures import encode_picture, gradient
from testing.server import running_server
from tests.serve.conftest import ROOT

MARK = f"raylens-status-{uuid.uuid4().hex}"
REPLICAS = 2
PATIENCE_S = 60.0
"""Metrics come through Ray, which collects them every 10 s."""


def shape(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    args = application["args"]
    args["models"] = [model for model in args["models"] if model["name"] == "smolvlm"]
    names = {"Ingress", "Preprocessor", "smolvlm"}
    application["deployments"] = [d for d in application["deployments"] if d["name"] in names]
    application["deployments"][0]["num_replicas"] = REPLICAS


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        running_server(ROOT / "serve_config.yaml", shape, {"RAYLENS_TEST": MARK}) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def read(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/api/v1/status")
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    Status.model_validate(status)
    return status


def wait_for(client: httpx.Client, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first status with something; the last one if it doesn't come."""
    until = time.monotonic() + PATIENCE_S
    while True:
        status = read(client)
        if is_there(status) or time.monotonic() > until:
            return status
        time.sleep(1)


def ask(client: httpx.Client, text: bool = True) -> httpx.Response:
    with httpx.Client(base_url=client.base_url, timeout=60) as other:  # perhaps another replica
        form = {"question": "How many shapes are there?"} if text else {}
        files = {"file": encode_picture(gradient(64, 64))}
        return other.post("/v1/query", files=files, data=form)


def test_requests_are_counted_once_whatever_replica_answers(client: httpx.Client) -> None:
    answered = [ask(client) for _ in range(8)]
    refused = [ask(client, text=False) for _ in range(3)]
    assert {answer.status_code for answer in answered} == {200}
    assert {answer.status_code for answer in refused} == {400}
    status = wait_for(client, lambda status: status["history"]["totals"]["requests"] >= 11)
    history = status["history"]
    newest = history["times"][-1]
    later = wait_for(client, lambda status: status["history"]["times"][-1] > newest)
    for totals in (history["totals"], later["history"]["totals"]):
        assert (totals["requests"], totals["refusals"], totals["errors"]) == (11, 3, 0)
    model = history["model_totals"]["smolvlm"]
    assert model["requests"] == 8
    assert 0 < model["latency_p50_s"] <= model["latency_p95_s"] < 60
    assert model["answer_tokens"] > 0
    figures = history["models"]["smolvlm"]
    assert figures["prefix_hits"][-1] > 0.5  # eight times the same question
    assert figures["memory_bytes"][-1] > 10**7
    assert (history["nodes"], history["answering"]) == (1, 1)
    assert history["server"]["sessions"][-1] == 0
    assert history["jobs"]["queued"][-1] == 0


def test_models_and_replicas_are_told(client: httpx.Client) -> None:
    status = read(client)
    model = status["models"]["smolvlm"]
    assert (model["state"], model["device"]) == ("loaded", "cpu")
    deployments = status["deployments"]
    assert deployments.keys() == {"Ingress", "Preprocessor", "Realtime", "smolvlm"}
    ingress = deployments["Ingress"]
    assert (ingress["running"], ingress["target"]) == (REPLICAS, REPLICAS)
    assert ingress["status"] == "HEALTHY"
    assert deployments["Realtime"]["running"] == 0
    assert status["links"]["ray_dashboard"].startswith("http://127.0.0.1:")


def test_after_the_loss_of_the_history_another_one_begins(client: httpx.Client) -> None:
    processes = [psutil.Process(process.pid) for process in find_marked("RAYLENS_TEST", MARK)]
    (keeper,) = [each for each in processes if "SharedStateActor" in " ".join(each.cmdline())]
    keeper.kill()
    keeper.wait()
    assert read(client)["models"]["smolvlm"]["state"] == "loaded"
    status = wait_for(client, lambda status: bool((status["history"] or {}).get("times")))
    assert ask(client).status_code == 200
    status = wait_for(client, lambda status: status["history"]["totals"]["requests"] > 0)
    assert status["history"]["totals"]["requests"] == 1
