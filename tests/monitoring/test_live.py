"""A server at work, and a Prometheus that watches it: all queries of the dashboard have answers."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from monitoring.build import FOLDER
from monitoring.panels import HOW_FULL_ARE_GPUS
from testing.ports import free_port
from testing.scenes import draw_scene
from testing.server import running_server
from tests.monitoring.test_metrics import QUERIES, RULES
from tests.receiver import run_receiver

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is missing: apt-get install prometheus",
    ),
]

ROOT = Path(__file__).parents[2]
SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
VARIABLES = {"$__rate_interval": "1m", "$cluster": ".*", "$model": ".*"}
PATIENCE_S = 240
"""Ray exports every 10 s, Prometheus reads every 15 s, and a rate needs two readings."""
NEED_A_GPU = {panel.title for panel in HOW_FULL_ARE_GPUS.panels}
"""Panels without data here: the bundled models run on a CPU."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus beside a server under load."""

    def allow_webhooks(settings: dict[str, Any]) -> None:
        (application,) = settings["applications"]
        application["args"]["jobs"] = {"webhooks": {"allow": ["127.0.0.1/32"]}}

    environment = {"RAYLENS_WEBHOOK_SECRETS": SECRET}
    with (
        run_receiver(SECRET) as receiver,
        running_server(ROOT / "serve_config.yaml", allow_webhooks, environment) as url,
        load(url, receiver.url),
        running_prometheus(tmp_path_factory.mktemp("prometheus")) as client,
    ):
        yield client


@contextmanager
def load(url: str, webhook_url: str) -> Iterator[None]:
    """Send a few requests and jobs at a time, again and again."""
    stop = threading.Event()
    failures: list[Exception] = []

    def send_all() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                try:
                    send_a_few(client, webhook_url)
                except Exception as error:  # raised in the test's thread, below
                    failures.append(error)
                    return
                stop.wait(1)

    thread = threading.Thread(target=send_all)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures, failures


def send_a_few(client: httpx.Client, webhook_url: str) -> None:
    _, png, picture = draw_scene(int(time.time()) % 5)
    for _ in range(2):  # the second one finds the picture in the caches
        files = {"file": ("scene.png", png, "image/png")}
        client.post("/v1/caption", files=files).raise_for_status()
    parts = [
        {"type": "image_url", "image_url": {"url": picture}},
        {"type": "text", "text": "Describe this image."},
    ]
    # After a text that is new each time, the picture's features are cached, but no prefix with it.
    new_text = {"type": "text", "text": f"It is {time.time():.3f}."}
    for model in ("smolvlm", "qwen2.5-vl"):
        for content in (parts, [new_text, *parts]):
            body = {"model": model, "messages": [{"role": "user", "content": content}]}
            client.post("/v1/chat/completions", json=body).raise_for_status()
    job = {"job_type": "caption", "input": {"image": picture, "webhook_url": webhook_url}}
    response = client.post("/api/v1/jobs", json=job)
    assert response.status_code in (202, 429), response.text  # refused while the queue is full


@contextmanager
def running_prometheus(folder: Path) -> Iterator[httpx.Client]:
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={FOLDER / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            is_ready = wait_until(lambda: _answers(client), 30)
            assert is_ready, (folder / "log").read_text()
            yield client
        finally:
            process.terminate()


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/-/ready").status_code == 200
    return False


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(1)
    return holds


def evaluate(client: httpx.Client, expression: str) -> list[float]:
    """Return the numbers that a query has for an answer."""
    response = client.get("/api/v1/query", params={"query": expression}).json()
    assert response["status"] == "success", response
    values = [float(series["value"][1]) for series in response["data"]["result"]]
    return [value for value in values if not math.isnan(value)]


def test_every_query_of_the_dashboard_has_an_answer(prometheus: httpx.Client) -> None:
    unanswered = {name: expression.text for name, _, expression in QUERIES}

    def all_are_answered() -> bool:
        for name, text in list(unanswered.items()):
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            if evaluate(prometheus, text):
                del unanswered[name]
        return not any(_has_data_on_a_cpu(name) for name in unanswered)

    wait_until(all_are_answered, PATIENCE_S)
    assert [name for name in unanswered if _has_data_on_a_cpu(name)] == []


def _has_data_on_a_cpu(name: str) -> bool:
    return name.partition(":")[0] not in NEED_A_GPU


def test_every_alert_is_evaluated_and_none_fires(prometheus: httpx.Client) -> None:
    def all_are_evaluated() -> bool:
        return all(rule["health"] != "unknown" for rule in rules_of(prometheus))

    assert wait_until(all_are_evaluated, 60)
    problems = {rule["name"]: rule.get("lastError") for rule in rules_of(prometheus)}
    assert problems == dict.fromkeys(rule["alert"] for rule in RULES)
    # The machine's disk may be full; that is no fault of the server.
    firing = {rule["name"] for rule in rules_of(prometheus) if rule["state"] == "firing"}
    assert firing <= {"RaylensDiskAlmostFull"}


def rules_of(client: httpx.Client) -> list[dict[str, Any]]:
    groups = client.get("/api/v1/rules").json()["data"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_choices_at_the_top_of_the_dashboard_have_values(prometheus: httpx.Client) -> None:
    def chosen_models() -> set[str]:
        parameters = {"match[]": "ray_raylens_engine_load"}
        return set(prometheus.get("/api/v1/label/model/values", params=parameters).json()["data"])

    assert wait_until(lambda: bool(chosen_models()), 60)
    assert chosen_models() == {"moondream", "smolvlm", "qwen2.5-vl"}
