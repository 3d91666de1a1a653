"""``GET /api/v1/status``: what it tells, to whom, and when parts of the server are away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

from raylens.api.answers.status import Status
from raylens.api.app import create_app
from raylens.core.config import AppConfig
from raylens.core.keys import Scope, hash_key
from raylens.status.history import Moment
from raylens.status.metrics import REQUESTS
from raylens.status.ports import DeploymentState, StatusSource
from raylens.status.report import Report, make_report
from tests.unit.raylens.api.conftest import CONFIG, FakeService

PATH = "/api/v1/status"
HEALTHY = DeploymentState("HEALTHY", "", 1, 1, 0, None, 0, {"CPU": 1.0})
KEY = (REQUESTS, "smolvlm", "200")
MOMENTS = [Moment(1000.0, 1, 1, {}, {}), Moment(1010.0, 2, 1, {KEY: 5.0}, {})]


@dataclass
class FakeStatus(StatusSource):
    states: dict[str, DeploymentState] | None = field(
        default_factory=lambda: dict.fromkeys(("Ingress", "smolvlm", "other"), HEALTHY)
    )
    figures: Report | None = field(
        default_factory=lambda: make_report(MOMENTS, ("smolvlm", "other"))
    )
    dashboard: str | None = "127.0.0.1:8265"

    async def deployments(self) -> dict[str, DeploymentState] | None:
        return self.states

    async def report(self) -> Report | None:
        return self.figures

    async def ray_dashboard(self) -> str | None:
        return self.dashboard


@pytest.fixture
def source() -> FakeStatus:
    return FakeStatus()


def config(**changes: Any) -> AppConfig:
    return AppConfig.model_validate({**CONFIG.model_dump(exclude_unset=True), **changes})


@asynccontextmanager
async def connect(
    service: FakeService,
    source: FakeStatus,
    base_url: str = "http://localhost",
    address: str = "127.0.0.1",
    **changes: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, config(**changes), status=source)
    transport = httpx.ASGITransport(app, client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
        yield client


async def ask(client: httpx.AsyncClient, **headers: str) -> dict[str, Any]:
    answer = await client.get(PATH, headers=headers)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    Status.model_validate(body)  # as the API's description says
    return body


async def test_models_deployments_and_figures_are_told(
    service: FakeService, source: FakeStatus
) -> None:
    async with connect(service, source) as client:
        status = await ask(client)
    smolvlm = status["models"]["smolvlm"]
    assert (smolvlm["state"], smolvlm["device"], smolvlm["dtype"]) == ("loaded", "cpu", "float32")
    assert status["deployments"]["Ingress"]["running"] == 1
    assert status["deployments"]["smolvlm"]["resources"] == {"CPU": 1.0}
    history = status["history"]
    assert history["times"] == [1010.0]
    assert history["server"]["requests_per_s"] == [0.5]
    assert history["model_totals"]["smolvlm"]["requests"] == 5
    assert (history["nodes"], history["answering"]) == (2, 1)


@pytest.mark.parametrize(
    ("on_demand", "starting", "state"),
    [
        (None, 0, "not loaded"),
        (None, 1, "loading"),
        ("scaled to zero", 0, "on demand"),
        ("loading for 3 s", 1, "loading"),
    ],
)
async def test_a_model_that_does_not_answer_has_a_state(
    service: FakeService, source: FakeStatus, on_demand: str | None, starting: int, state: str
) -> None:
    service.loaded = frozenset({"other"})
    service.on_demand = {"smolvlm": on_demand} if on_demand else {}
    assert source.states is not None
    source.states["smolvlm"] = replace(HEALTHY, running=0, starting=starting)
    async with connect(service, source) as client:
        model = (await ask(client))["models"]["smolvlm"]
    assert model["state"] == state
    assert (model["device"], model["tasks"]) == (None, [])


async def test_what_is_away_is_null_and_the_rest_is_told(
    service: FakeService, source: FakeStatus
) -> None:
    source.states = source.figures = source.dashboard = None
    async with connect(service, source) as client:
        status = await ask(client)
    assert (status["deployments"], status["history"]) == (None, None)
    assert status["links"]["ray_dashboard"] is None
    assert status["models"]["other"]["state"] == "loaded"


async def test_right_after_the_start_all_lists_are_empty(
    service: FakeService, source: FakeStatus
) -> None:
    source.figures = make_report(MOMENTS[:1], ("smolvlm", "other"))
    async with connect(service, source) as client:
        assert (await ask(client))["history"]["server"]["requests_per_s"] == []


async def test_only_a_key_of_an_administrator_reads_what_is_wrong(
    service: FakeService, source: FakeStatus
) -> None:
    assert source.states is not None
    source.states["smolvlm"] = replace(HEALTHY, message="OSError: /secret/path")
    keys = [
        {"name": "user", "hash": hash_key("rl-user"), "scopes": [Scope.INFER]},
        {"name": "admin", "hash": hash_key("rl-admin"), "scopes": [Scope.INFER, Scope.ADMIN]},
        {"name": "jobs", "hash": hash_key("rl-jobs"), "scopes": [Scope.JOBS]},
    ]
    async with connect(service, source, auth={"keys": keys}) as client:
        messages = {
            name: (await ask(client, Authorization=f"Bearer rl-{name}"))["deployments"]["smolvlm"][
                "message"
            ]
            for name in ("user", "admin")
        }
        assert messages == {"user": "", "admin": "OSError: /secret/path"}
        for headers, code in (({}, 401), ({"Authorization": "Bearer rl-jobs"}, 403)):
            assert (await client.get(PATH, headers=headers)).status_code == code


@pytest.mark.parametrize(
    ("base_url", "address", "dashboard", "is_linked"),
    [
        ("http://localhost:8000", "127.0.0.1", "127.0.0.1:8265", True),
        ("http://127.0.0.1", "127.0.0.1", "127.0.0.1:8265", True),
        ("http://[::1]:8000", "::1", "[::1]:8265", True),
        ("http://10.0.0.1:8000", "10.0.0.2", "127.0.0.1:8265", False),
        ("http://localhost:8000", "172.17.0.1", "127.0.0.1:8265", False),
        ("http://localhost:8000", "127.0.0.1", "10.0.0.1:8265", False),
    ],
)
async def test_the_ray_dashboard_is_linked_for_browsers_on_its_machine(
    service: FakeService,
    source: FakeStatus,
    base_url: str,
    address: str,
    dashboard: str,
    is_linked: bool,
) -> None:
    source.dashboard = dashboard
    async with connect(service, source, base_url, address) as client:
        links = (await ask(client))["links"]
    assert links["ray_dashboard"] == (f"http://{dashboard}" if is_linked else None)


async def test_configured_links_are_told_to_everybody(
    service: FakeService, source: FakeStatus
) -> None:
    links = {
        "ray_dashboard": "https://ray.example.com",
        "grafana": "https://grafana.example.com/d/raylens",
        "prometheus": None,
    }
    async with connect(service, source, "http://10.0.0.1", "10.0.0.2", links=links) as client:
        assert (await ask(client))["links"] == links


@pytest.mark.parametrize("url", ["grafana.example.com", "javascript:alert(1)", "ftp://a", ""])
def test_a_link_is_a_web_address(url: str) -> None:
    with pytest.raises(ValueError, match="grafana"):
        config(links={"grafana": url})
