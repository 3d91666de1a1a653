"""How a process learns that it is about to end."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.serve._private.common import DeploymentID
from ray.serve._private.deployment_state import DeploymentActorWrapper
from ray.serve._private.http_util import _apply_middlewares
from ray.serve._private.proxy import HTTPProxy
from ray.serve._private.replica import Replica, ReplicaActor
from ray.serve._private.utils import get_deployment_actor_name
from ray.serve.schema import ReplicaState
from starlette.middleware import Middleware

from deployments.draining import (
    NODE_PERIOD_S,
    PREPARE_S,
    AskedInBackground,
    find_state,
    leave_with_node,
    machine_drain,
    proxy_draining,
    queue_actor_names,
    replica_draining,
)
from deployments.node_drain import Cluster, Node, NodeDrainError, Rest, drain_node, find_node
from deployments.ray_environment import DRAIN_FILE
from deployments.server_drain import PERIOD_S, JobQueues, ServerDrain
from raylens.api.draining import DrainMiddleware
from raylens.core.endpoint import Endpoint
from testing.virtual_time import VirtualTimePolicy

HEAD = Node("aa11" + "0" * 52, "10.0.0.1", "10.0.0.1", is_head=True)
FIRST = Node("bb22" + "0" * 52, "10.0.0.2", "gpu-1")
SECOND = Node("bb23" + "0" * 52, "10.0.0.3", "gpu-2")


class FakeProxy:
    drains = False

    def _is_draining(self) -> bool:
        return self.drains

    async def __call__(self, *arguments: Any) -> None: ...


def test_a_replica_reads_its_own_flag() -> None:
    replica = SimpleNamespace(_shutting_down=False)
    drains = replica_draining(SimpleNamespace(_replica_impl=replica), lambda: True)
    assert not drains()
    replica._shutting_down = True
    assert drains()


def test_serve_still_has_what_is_private() -> None:
    assert "self._shutting_down = True" in inspect.getsource(Replica._perform_graceful_shutdown)
    assert "self._replica_impl" in inspect.getsource(ReplicaActor)
    assert callable(HTTPProxy._is_draining)
    # A deployment's actor gets no notice. If that changes, job_handover.py isn't needed any more.
    assert "ray.kill" in inspect.getsource(DeploymentActorWrapper.kill)


def test_a_replica_without_the_flag_asks_the_controller() -> None:
    mine = {"replica_id": "r1", "state": "RUNNING"}
    deployment = {"replicas": [{"replica_id": "r0", "state": "STOPPING"}, mine]}

    def ask() -> bool:
        return find_state(deployment, "r1") is ReplicaState.STOPPING

    drains = replica_draining(None, ask, 0.001)
    assert isinstance(drains, AskedInBackground)
    assert not drains()
    mine["state"] = "STOPPING"
    assert drains.answered.wait(10)
    assert drains()
    mine["state"] = ReplicaState.STOPPING
    assert find_state(deployment, "r1") is ReplicaState.STOPPING
    assert find_state(deployment, "r2") is None


def test_a_question_is_asked_by_one_thread() -> None:
    started = threading.Event()
    may_end = threading.Event()
    askers: set[int] = set()

    def ask() -> bool:
        askers.add(threading.get_ident())
        started.set()
        return may_end.wait(30)

    drains = [replica_draining(None, ask, 0.001) for _ in range(3)]
    assert started.wait(10)
    assert drains[0] is drains[1] is drains[2]
    may_end.set()
    assert isinstance(drains[0], AskedInBackground)
    assert drains[0].answered.wait(10)
    assert len(askers) == 1


def test_a_failed_question_is_asked_again() -> None:
    answers: list[Any] = [OSError("away"), False, True]
    asked = threading.Event()

    def ask() -> bool:
        answer = answers.pop(0)
        if not answers:
            asked.set()
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    drains = AskedInBackground(ask, 0.001)
    assert drains.answered.wait(10)
    assert asked.is_set()


def test_the_proxy_is_found_behind_serves_own_middleware() -> None:
    proxy = FakeProxy()
    seen: list[Any] = []

    def find(app: Any) -> Any:
        seen.append(proxy_draining(app))
        return seen[0]

    _apply_middlewares(proxy, [Middleware(DrainMiddleware, proxy_drains=find)])
    assert not seen[0]()
    proxy.drains = True
    assert seen[0]()


def test_an_unknown_proxy_never_drains() -> None:
    assert not proxy_draining(lambda: None)()


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


@pytest.mark.parametrize("fault", [None, ValueError("the store is away"), TimeoutError()])
async def test_an_actor_leaves_its_node_when_that_drains(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    monkeypatch.delenv(DRAIN_FILE, raising=False)
    answers: list[Any] = [OSError("the GCS is away"), False, True]
    happened: list[str] = []

    def drains() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    async def prepare() -> None:
        happened.append("prepared")
        if isinstance(fault, TimeoutError):
            await asyncio.sleep(3600)
        if fault is not None:
            raise fault

    await leave_with_node(prepare, drains, lambda status: happened.append(f"ended {status}"))
    assert answers == []
    assert happened == ["prepared", "ended 0"]
    seconds = asyncio.get_running_loop().time()
    waits = PREPARE_S if isinstance(fault, TimeoutError) else 0
    assert seconds == pytest.approx(3 * NODE_PERIOD_S + waits, abs=0.5)


async def test_an_actor_of_a_single_machine_has_nowhere_to_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(DRAIN_FILE, "/nowhere")
    ended: list[int] = []
    await leave_with_node(None, lambda: True, ended.append)
    assert ended == []


def test_the_machine_drains_while_the_file_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DRAIN_FILE, raising=False)
    assert machine_drain() is None
    file = tmp_path / "drain"
    monkeypatch.setenv(DRAIN_FILE, str(file))
    assert machine_drain() is None
    file.write_text('{"jobs": 1}')
    assert machine_drain() == {"jobs": 1}
    file.write_text("")
    assert machine_drain() == {}


def test_the_queues_of_an_application_are_not_those_of_a_similar_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def name(application: str, version: str, actor: str = "jobs") -> str:
        owner = DeploymentID("Ingress", application)
        return str(get_deployment_actor_name(owner, actor, version))

    old, new = name("raylens", "v1"), name("raylens", "v2")
    others = [name("raylens2", "v2"), name("my-raylens", "v2")]
    actors = [old, new, *others, name("raylens", "v2", "ledger"), "raylens::Ingress::v2::jobs"]
    monkeypatch.setattr(
        "ray.util.list_named_actors",
        lambda all_namespaces: [{"name": name, "namespace": "serve"} for name in actors],
    )
    assert queue_actor_names("raylens") == [old, new]
    assert queue_actor_names("raylens", "v2") == [old]
    assert queue_actor_names() == [old, new, *others]


class FakeQueues(JobQueues):
    def __init__(self, *running: int) -> None:
        self._running = list(running)
        self.handed_over = 0

    def drain(self) -> int:
        return self._running.pop(0) if len(self._running) > 1 else self._running[0]

    def hand_over(self) -> None:
        self.handed_over += 1


class Drill:
    """A drain of a server in virtual time, whose proxy answers with the numbers of requests."""

    def __init__(self, folder: Path, queues: FakeQueues, *requests: int | Exception) -> None:
        self.file = folder / "drain"
        self.now = 0.0
        self.reports: list[str] = []
        self.jobs_shown: list[int] = []
        self.seconds_left: list[float] = []
        self._requests = list(requests)
        self.drain = ServerDrain(
            Endpoint("0.0.0.0", 8000),
            self.reports.append,
            queues,
            httpx.MockTransport(self._answer),
            lambda: self.now,
            self._sleep,
        )

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _answer(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://127.0.0.1:8000/ready"
        shown = json.loads(self.file.read_text())
        self.jobs_shown.append(shown["jobs"])
        self.seconds_left.append(shown["seconds_left"])
        number = self._requests.pop(0) if len(self._requests) > 1 else self._requests[0]
        if isinstance(number, Exception):
            raise number
        return httpx.Response(503, json={"status": "draining", "requests": number})


def test_a_server_drains_until_requests_and_jobs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    queues = FakeQueues(2, 2, 1, 0)
    drill = Drill(tmp_path, queues, 3, 1, 0)
    drill.drain.run(600)
    assert drill.reports == [
        "3 requests in flight, 2 jobs running",
        "1 request in flight, 2 jobs running",
        "0 requests in flight, 1 job running",
        "0 requests in flight, 0 jobs running",
    ]
    assert drill.jobs_shown == [2, 2, 1, 0]
    assert drill.seconds_left == [600, 599.8, 599.5, 599.2]
    assert queues.handed_over == 0


def test_a_drain_ends_in_time_and_hands_the_jobs_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    queues = FakeQueues(1)
    drill = Drill(tmp_path, queues, 5)
    drill.drain.run(30)
    assert 30 <= drill.now < 31
    assert drill.reports[-1].startswith("what is left ends now, after 30 s")
    assert queues.handed_over == 1


def test_a_dead_proxy_has_no_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    drill = Drill(tmp_path, FakeQueues(0), 3, httpx.ConnectError("refused"))
    drill.drain.run(30)
    assert drill.now == PERIOD_S


@pytest.mark.parametrize(
    "fault", [httpx.ReadTimeout("busy"), httpx.ConnectTimeout("busy"), httpx.ReadError("reset")]
)
def test_a_proxy_that_does_not_answer_may_have_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    drill = Drill(tmp_path, FakeQueues(0), fault, 3, fault, 0)
    drill.drain.run(30)
    assert drill.reports == [
        "1 request in flight, 0 jobs running",
        "3 requests in flight, 0 jobs running",
        "0 requests in flight, 0 jobs running",
    ]
    assert drill.now == 3 * PERIOD_S


class FakeCluster(Cluster):
    def __init__(self, *rests: Rest) -> None:
        self.drained: list[Node] = []
        self._rests = list(rests)

    def nodes(self) -> list[Node]:
        return [HEAD, FIRST, SECOND]

    def drain(self, node: Node) -> None:
        self.drained.append(node)

    def rest(self, node: Node) -> Rest:
        assert self.drained == [node]
        return self._rests.pop(0) if len(self._rests) > 1 else self._rests[0]


@pytest.mark.parametrize("name", [FIRST.id, "bb22", "10.0.0.2", "gpu-1"])
def test_a_node_is_found_by_any_of_its_names(name: str) -> None:
    assert find_node([HEAD, FIRST, SECOND], name) is FIRST


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("10.0.0.9", "no node is called '10.0.0.9'; known: aa1100000000 (10.0.0.1), bb22"),
        ("bb2", "no node is called 'bb2'"),
        ("aa11", "the head node can't be drained"),
    ],
)
def test_what_is_no_node_to_drain_is_refused(name: str, message: str) -> None:
    cluster = FakeCluster(Rest())
    with pytest.raises(NodeDrainError) as error:
        drain_node(cluster, name, None, print)
    assert str(error.value).startswith(message)
    assert cluster.drained == []


def test_a_prefix_of_two_nodes_is_refused() -> None:
    twin = Node("bb22" + "f" * 52, "10.0.0.4", "gpu-3")
    with pytest.raises(NodeDrainError, match=r"^2 nodes are called 'bb22'"):
        find_node([FIRST, twin], "bb22")


def test_a_node_is_drained_when_replicas_proxy_and_actors_are_gone() -> None:
    reports: list[str] = []
    cluster = FakeCluster(
        Rest(("raylens/m", "raylens/m", "raylens/Ingress"), True, 1),
        Rest((), True, 1),
        Rest((), True, 0),
        Rest(),
    )
    drain_node(cluster, "gpu-1", None, reports.append, lambda: 0.0, lambda seconds: None)
    assert reports == [
        "node bb2200000000 at 10.0.0.2 drains",
        "still there: 1 × raylens/Ingress, 2 × raylens/m, the proxy, 1 actors",
        "still there: the proxy, 1 actors",
        "still there: the proxy",
        "nothing is left: the machine can be stopped",
    ]


def test_a_drain_of_a_node_that_takes_too_long_is_an_error() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    cluster = FakeCluster(Rest(("raylens/m",)))
    with pytest.raises(NodeDrainError, match=r"after 30 s there is still 1 × raylens/m"):
        drain_node(cluster, "gpu-1", 30, lambda text: None, lambda: now[0], sleep)
    assert now[0] == 30
