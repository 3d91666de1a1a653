"""Serve's router of requests to models, over replicas that only tell how long their queues are."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve._private.request_router.common import PendingRequest
from ray.serve.exceptions import RayServeException

from deployments.picture_router import (
    PictureRouter,
    PreferenceRouter,
    PreprocessorRouter,
    preprocessor_session_id,
)
from deployments.retries import Loss, find_loss

MODEL = DeploymentID("a")


@dataclass
class Replica:
    """What the router knows of a replica."""

    replica_id: ReplicaID
    max_ongoing_requests: int = 10
    queue: int = 0
    node_id: str = "node"

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.queue


class Routed(PreferenceRouter):
    """Takes requests as a handle does."""

    async def route(self, session_id: str = "", internal_id: str = "request") -> str:
        metadata = RequestMetadata("id", internal_id, session_id=session_id)
        request = PendingRequest(args=[], kwargs={}, metadata=metadata)
        replica = await self._choose_replica_for_request(request)
        self.on_send_request(replica.replica_id)
        return str(replica.replica_id.unique_id)


class Router(Routed, PictureRouter):
    pass


class NearRouter(Routed, PreprocessorRouter):
    pass


@pytest.fixture
def replicas() -> list[Any]:
    return [Replica(ReplicaID(name, MODEL)) for name in ("first", "second", "third", "fourth")]


@pytest.fixture
async def router(replicas: list[Any]) -> Router:
    router = Router(MODEL, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.update_replicas(replicas)
    return router


def end_all(router: Routed, replicas: list[Any]) -> None:
    for replica in replicas:
        router.on_new_queue_len_info(replica.replica_id, 0)
    if isinstance(router, PictureRouter):
        router._routed_at = -math.inf


async def test_requests_about_one_picture_go_to_one_replica(
    router: Router, replicas: list[Any]
) -> None:
    homes = set()
    for number in range(20):
        homes.add(await router.route("picture", f"request {number}"))
        end_all(router, replicas)
    assert len(homes) == 1
    others = set()
    for number in range(40):
        others.add(await router.route(f"picture {number}", f"request {number}"))
        end_all(router, replicas)
    assert len(others) == 4


async def test_a_picture_that_many_ask_about_spills_over(router: Router) -> None:
    requests = (router.route("picture", f"request {number}") for number in range(20))
    counts = Counter(await asyncio.gather(*requests))
    assert max(counts.values()) <= 7
    assert counts.total() == 20


async def test_a_full_replica_is_passed_over(router: Router, replicas: list[Any]) -> None:
    home = await router.route("picture")
    end_all(router, replicas)
    full = next(replica for replica in replicas if replica.replica_id.unique_id == home)
    full.queue = full.max_ongoing_requests
    router.on_new_queue_len_info(full.replica_id, full.queue)
    assert await router.route("picture", "another") != home


async def test_the_pictures_of_a_dead_replica_find_another_home(
    router: Router, replicas: list[Any]
) -> None:
    home = await router.route("picture")
    (dead,) = (replica for replica in replicas if replica.replica_id.unique_id == home)
    router.on_replica_actor_died(dead.replica_id)
    router.update_replicas([replica for replica in replicas if replica is not dead])
    homes = set()
    for number in range(20):
        end_all(router, replicas)
        homes.add(await router.route("picture", f"request {number}"))
    assert len(homes) == 1
    assert home not in homes


async def test_requests_without_a_picture_go_where_the_queue_is_short(
    router: Router, replicas: list[Any]
) -> None:
    counts = Counter([await router.route("", f"request {number}") for number in range(20)])
    assert max(counts.values()) <= 7


async def test_concurrent_calls_out_of_one_request_are_all_routed(router: Router) -> None:
    calls = [router.route(f"picture {number}", "one request") for number in range(12)]
    async with asyncio.timeout(10):
        assert len(await asyncio.gather(*calls)) == 12


async def test_requests_wait_for_the_first_replica(replicas: list[Any]) -> None:
    router = Router(MODEL, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    waiting = [asyncio.create_task(router.route("picture", "one request")) for _ in range(3)]
    await asyncio.sleep(0)
    router.update_replicas(replicas[:1])
    async with asyncio.timeout(10):
        assert await asyncio.gather(*waiting) == ["first"] * 3


async def handle_failure(router: Router, replica: Any, failure: Exception) -> None:
    """Tell a router of a failed call as Serve does, which then sends the call to another one."""
    try:
        raise failure
    except ActorUnavailableError:
        router.on_replica_actor_unavailable(replica.replica_id)


async def test_a_call_whose_argument_is_lost_is_given_up(
    router: Router, replicas: list[Any]
) -> None:
    away = ActorUnavailableError("away", None)
    router.on_new_queue_len_info(replicas[0].replica_id, 3)
    lost = RayTaskError("generate", "Traceback", away).as_instanceof_cause()
    with pytest.raises(RayServeException) as caught:
        await handle_failure(router, replicas[0], lost)
    assert find_loss(caught.value) is Loss.ARGUMENT
    # The replica itself is as it was.
    assert router._replica_queue_len_cache.get(replicas[0].replica_id) == 3
    await handle_failure(router, replicas[0], away)
    assert router._replica_queue_len_cache.get(replicas[0].replica_id) is None


NODES = ("left", "right")


@pytest.fixture
async def routers() -> tuple[Router, NearRouter, list[Any]]:
    """Return routers of a model and of the preprocessors, with replicas on two nodes each, and the
    preprocessors."""
    router = Router(MODEL, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.update_replicas([Replica(ReplicaID(node, MODEL), node_id=node) for node in NODES])
    preprocessors = DeploymentID("Preprocessor")
    near = NearRouter(
        preprocessors, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
    )
    replicas: list[Any] = [
        Replica(ReplicaID(f"{node} {number}", preprocessors), node_id=node)
        for node in (*NODES, "front")
        for number in range(2)
    ]
    near.update_replicas(replicas)
    return router, near, replicas


async def test_a_picture_is_processed_on_the_node_of_its_replica(
    routers: tuple[Router, NearRouter, list[Any]],
) -> None:
    router, near, replicas = routers
    for number in range(20):
        session_id = preprocessor_session_id(MODEL.name, f"picture{number}")
        preprocessor = await near.route(session_id, f"request {number}")
        assert preprocessor.split()[0] == await router.route(f"picture{number}", f"{number}")
        end_all(near, replicas)
        end_all(router, list(router.curr_replicas.values()))


async def test_a_preprocessor_with_less_to_do_is_taken_elsewhere(
    routers: tuple[Router, NearRouter, list[Any]],
) -> None:
    _, near, _ = routers
    session_id = preprocessor_session_id(MODEL.name, "picture")
    calls = (near.route(session_id, f"request {number}") for number in range(60))
    counts = Counter(await asyncio.gather(*calls))
    assert counts.total() == 60
    assert len(counts) == 6
    assert max(counts.values()) <= 20


async def test_preprocessors_are_shared_without_a_replica_near_them(
    routers: tuple[Router, NearRouter, list[Any]],
) -> None:
    _, near, replicas = routers
    near.update_replicas([replica for replica in replicas if replica.node_id == "front"])
    for model in (MODEL.name, "not asked yet"):
        session_ids = [preprocessor_session_id(model, f"picture{n}") for n in range(20)]
        homes = {await near.route(session_id, session_id) for session_id in session_ids}
        assert homes == {"front 0", "front 1"}
