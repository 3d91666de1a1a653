"""The ledger behind the ingress, which may be slow or gone: leases go on without it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from deployments.ingress_ledger import TIMEOUT_S, IngressLedger
from raylens.core.leases import Leases
from raylens.core.ledger import Budget, Grant
from testing.virtual_time import VirtualTimePolicy

BUDGET = Budget("camera", "requests", 60)
GRANT = Grant(5.0, 40.0, 0.0, 2)


class Ingress:
    """The ingress's handle: a call takes ``seconds``, and then has its result."""

    def __init__(self, result: Grant | Exception, seconds: float = 0.0) -> None:
        self.ledger = SimpleNamespace(remote=self._call)
        self.calls: list[tuple[Any, ...]] = []
        self.canceled = 0
        self._result = result
        self._seconds = seconds

    async def _call(self, *arguments: Any) -> Grant:
        self.calls.append(arguments)
        try:
            await asyncio.sleep(self._seconds)
        except asyncio.CancelledError:
            self.canceled += 1
            raise
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def as_ledger(self) -> IngressLedger:
        return IngressLedger(cast(DeploymentHandle, self))


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    return VirtualTimePolicy()


LOST = [
    ActorDiedError(),
    ActorUnavailableError("away", None),
    RayTaskError("ledger", "Traceback", ConnectionError("the actor is away")),
    DeploymentUnavailableError(DeploymentID("Ingress", "raylens")),
    BackPressureError(num_queued_requests=9, max_queued_requests=9),
]


async def test_a_call_is_that_of_the_ledger() -> None:
    ingress = Ingress(GRANT)
    ledger = ingress.as_ledger()
    assert await ledger.spend(BUDGET, "replica", 0.5, 1.0) == GRANT
    assert await ledger.hold(BUDGET, "replica", 2, 1) == GRANT
    assert ingress.calls == [
        ("spend", BUDGET, "replica", 0.5, 1.0),
        ("hold", BUDGET, "replica", 2, 1),
    ]


async def test_an_ingress_that_doesnt_answer_is_not_waited_for() -> None:
    ingress = Ingress(GRANT, seconds=3600)
    with pytest.raises(ConnectionError, match="TimeoutError"):
        await ingress.as_ledger().spend(BUDGET, "replica", 0.0, 1.0)
    assert asyncio.get_running_loop().time() == TIMEOUT_S
    assert ingress.canceled == 1


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_an_ingress_that_is_lost_is_a_ledger_that_doesnt_answer(error: Exception) -> None:
    with pytest.raises(ConnectionError):
        await Ingress(error).as_ledger().hold(BUDGET, "replica", 0, 1)


@pytest.mark.parametrize(
    "ingress", [Ingress(GRANT, seconds=3600), *map(Ingress, LOST)], ids=lambda each: "ingress"
)
async def test_limits_go_on_without_the_ingress(ingress: Ingress) -> None:
    """This replica goes on with the whole budget, since nobody has told it of others."""
    leases = Leases(ingress.as_ledger(), asyncio.get_running_loop().time)
    began_at = asyncio.get_running_loop().time()
    standings = [await leases.spend(BUDGET, 1) for _ in range(61)]
    assert [bool(standing.retry_after) for standing in standings] == [False] * 60 + [True]
    # One call has failed, and the others didn't wait for another one.
    assert len(ingress.calls) == 1
    assert asyncio.get_running_loop().time() - began_at <= TIMEOUT_S
