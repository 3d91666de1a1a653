"""Budgets of clients: one ledger, and the replicas that lease from it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from raylens.core.errors import TooManyRequests
from raylens.core.leases import RETRY_S, Leases
from raylens.core.ledger import LEASE_S, Budget, Grant, Ledger

REQUESTS = Budget("ann", "requests", 60)
TOKENS = Budget("ann", "tokens", 6000)


@dataclass
class FakeClock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SharedLedger:
    """A ledger that counts its calls, and can be silent or begin anew."""

    clock: FakeClock
    calls: int = 0
    is_silent: bool = False
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        self.ledger = Ledger(self.clock)

    async def spend(self, budget: Budget, replica: str, debt: float, wanted: float) -> Grant:
        self._note_call()
        return self.ledger.spend(budget, replica, debt, wanted)

    async def hold(self, budget: Budget, replica: str, held: int, wanted: int) -> Grant:
        self._note_call()
        return self.ledger.hold(budget, replica, held, wanted)

    def _note_call(self) -> None:
        self.calls += 1
        if self.is_silent:
            raise ConnectionError("silent")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ledger(clock: FakeClock) -> SharedLedger:
    return SharedLedger(clock)


@pytest.fixture
def replicas(ledger: SharedLedger, clock: FakeClock) -> list[Leases]:
    return [Leases(ledger, clock) for _ in range(3)]


async def allowed(leases: Leases, budget: Budget, count: int, cost: int = 1) -> int:
    """Ask ``count`` times, and return how often it was allowed."""
    standings = [await leases.spend(budget, cost) for _ in range(count)]
    return sum(not standing.retry_after for standing in standings)


class TestRates:
    async def test_a_minute_allows_its_budget_and_fills_up_evenly(self, clock: FakeClock) -> None:
        leases = Leases(clock=clock)
        assert await allowed(leases, REQUESTS, 100) == 60
        clock.now += 10
        assert await allowed(leases, REQUESTS, 100) == 10
        clock.now += 3600
        assert await allowed(leases, REQUESTS, 100) == 60

    async def test_the_standing_tells_what_is_left_and_when_more_comes(
        self, clock: FakeClock
    ) -> None:
        leases = Leases(clock=clock)
        first = await leases.spend(REQUESTS, 1)
        assert (first.left, first.full_after, first.retry_after) == (59, 1, 0)
        await allowed(leases, REQUESTS, 59)
        clock.now += 0.25
        refused = await leases.spend(REQUESTS, 1)
        assert refused.retry_after == pytest.approx(0.75)
        clock.now += refused.retry_after
        assert (await leases.spend(REQUESTS, 1)).retry_after == 0

    async def test_clients_and_rates_have_budgets_of_their_own(self, clock: FakeClock) -> None:
        leases = Leases(clock=clock)
        assert await allowed(leases, REQUESTS, 100) == 60
        assert await allowed(leases, Budget("bob", "requests", 60), 100) == 60
        assert await allowed(leases, TOKENS, 10, cost=0) == 10

    async def test_replicas_share_a_budget(self, replicas: list[Leases]) -> None:
        total = 0
        for _ in range(50):
            for leases in replicas:
                total += await allowed(leases, REQUESTS, 1)
        assert total == 60

    async def test_a_busy_client_costs_a_call_a_second(
        self, replicas: list[Leases], ledger: SharedLedger, clock: FakeClock
    ) -> None:
        budget = Budget("ann", "requests", 60_000)
        for _ in range(1000):
            assert await allowed(replicas[0], budget, 1) == 1
            clock.now += 0.001
        assert ledger.calls <= 3

    async def test_tokens_are_charged_when_they_are_known(self, clock: FakeClock) -> None:
        leases = Leases(clock=clock)
        assert await allowed(leases, TOKENS, 3, cost=0) == 3
        leases.charge(TOKENS, 6300)
        await asyncio.sleep(0)
        refused = await leases.spend(TOKENS, 0)
        assert refused.retry_after == pytest.approx(3, abs=0.1)
        clock.now += 3.1
        assert await allowed(leases, TOKENS, 1, cost=0) == 1

    async def test_what_one_replica_has_charged_holds_in_all(self, replicas: list[Leases]) -> None:
        assert await allowed(replicas[0], TOKENS, 1, cost=0) == 1
        replicas[0].charge(TOKENS, 20_000)
        await asyncio.sleep(0.01)
        assert [await allowed(leases, TOKENS, 1, cost=0) for leases in replicas] == [0, 0, 0]

    async def test_what_is_charged_during_a_call_of_the_ledger_is_kept(
        self, clock: FakeClock, ledger: SharedLedger
    ) -> None:
        leases = Leases(ledger, clock)
        await leases.spend(TOKENS, 0)

        async def spend(budget: Budget, replica: str, debt: float, wanted: float) -> Grant:
            if ledger.calls == 1:
                leases.charge(TOKENS, 500)
            return await SharedLedger.spend(ledger, budget, replica, debt, wanted)

        ledger.spend = spend  # type: ignore[method-assign]
        leases.charge(TOKENS, 500)
        await asyncio.sleep(0.01)
        assert leases.standing(TOKENS).left == pytest.approx(5000)

    async def test_a_replica_knows_where_a_client_stands(self, clock: FakeClock) -> None:
        leases = Leases(clock=clock)
        assert leases.standing(REQUESTS).left == 60
        await allowed(leases, REQUESTS, 60)
        assert leases.standing(REQUESTS).left == 0
        clock.now += 30
        assert leases.standing(REQUESTS).left == pytest.approx(30)


class TestPlaces:
    PLACES = Budget("ann", "requests in flight", 3)

    async def test_no_more_than_the_limit_is_held(self, clock: FakeClock) -> None:
        leases = Leases(clock=clock)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(leases.hold(self.PLACES))
            with pytest.raises(TooManyRequests, match="your limit of 3 requests in flight at a t"):
                await stack.enter_async_context(leases.hold(self.PLACES))
        async with leases.hold(self.PLACES):
            pass

    async def test_replicas_share_places(self, replicas: list[Leases]) -> None:
        async with AsyncExitStack() as stack:
            for leases in replicas:
                await stack.enter_async_context(leases.hold(self.PLACES))
            for leases in replicas:
                with pytest.raises(TooManyRequests):
                    await stack.enter_async_context(leases.hold(self.PLACES))

    async def test_a_place_that_was_given_back_is_free_in_all_replicas(
        self, replicas: list[Leases]
    ) -> None:
        only = Budget("ann", "requests in flight", 1)
        for leases in replicas * 3:
            async with leases.hold(only):
                pass
            await asyncio.sleep(0)

    async def test_places_of_a_replica_that_is_gone_are_free_after_a_while(
        self, replicas: list[Leases], clock: FakeClock
    ) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(replicas[0].hold(self.PLACES))
            clock.now += LEASE_S + 1  # in which it would have renewed its lease
            async with replicas[1].hold(self.PLACES):
                pass

    async def test_a_place_beyond_the_limit_counts_in_all_replicas(
        self, replicas: list[Leases], clock: FakeClock
    ) -> None:
        two = Budget("ann", "requests in flight", 2)
        dead, first, second = replicas
        async with AsyncExitStack() as gone, AsyncExitStack() as stack:
            for _ in range(2):
                await gone.enter_async_context(dead.hold(two))
            for _ in range(2):
                await stack.enter_async_context(first.hold(two, may_exceed=True))
            clock.now += LEASE_S + 1
            await first._hold(two, first._places[two], 0)  # renews its lease
            with pytest.raises(TooManyRequests):
                await stack.enter_async_context(second.hold(two))
            await stack.aclose()
            await asyncio.sleep(0)
            async with second.hold(two), second.hold(two):
                pass

    async def test_places_beyond_the_limit_are_not_kept(
        self, replicas: list[Leases], ledger: SharedLedger
    ) -> None:
        limit = Budget("ann", "requests in flight", 32)
        async with AsyncExitStack() as stack:
            for _ in range(32):
                await stack.enter_async_context(replicas[0].hold(limit))
            async with replicas[0].hold(limit, may_exceed=True):
                assert sum(ledger.ledger._accounts[limit].held.values()) == 33
            await asyncio.sleep(0)
            assert sum(ledger.ledger._accounts[limit].held.values()) == 32
            with pytest.raises(TooManyRequests):
                await stack.enter_async_context(replicas[0].hold(limit))

    async def test_a_new_ledger_learns_what_replicas_hold(
        self, replicas: list[Leases], ledger: SharedLedger
    ) -> None:
        two = Budget("ann", "requests in flight", 2)
        async with replicas[0].hold(two):
            ledger.start_anew()
            async with replicas[0].hold(two), AsyncExitStack() as stack:
                with pytest.raises(TooManyRequests):
                    await stack.enter_async_context(replicas[1].hold(two))

    async def test_a_client_that_asks_again_and_again_costs_few_calls(
        self, replicas: list[Leases], ledger: SharedLedger
    ) -> None:
        for _ in range(100):
            async with replicas[0].hold(Budget("ann", "requests in flight", 32)):
                await asyncio.sleep(0)
        assert ledger.calls == 1

    async def test_hundreds_at_once_never_exceed_the_limit(self, replicas: list[Leases]) -> None:
        limit = Budget("ann", "requests in flight", 40)
        held = most = refused = 0

        async def use(leases: Leases) -> None:
            nonlocal held, most, refused
            try:
                async with leases.hold(limit):
                    held += 1
                    most = max(most, held)
                    await asyncio.sleep(0)
                    held -= 1
            except TooManyRequests:
                refused += 1

        await asyncio.gather(*(use(leases) for leases in replicas * 100))
        assert most <= 40
        assert refused < 300
        assert held == 0


class TestSilence:
    async def test_the_last_lease_goes_on(
        self, replicas: list[Leases], ledger: SharedLedger, clock: FakeClock
    ) -> None:
        for leases in replicas * 5:
            assert await allowed(leases, REQUESTS, 1) == 1
        ledger.is_silent = True
        # 45 are left, of which each replica takes its part.
        last = [await allowed(leases, REQUESTS, 100) for leases in replicas]
        assert 45 <= sum(last) <= 51
        clock.now += 30
        more = [await allowed(leases, REQUESTS, 100) for leases in replicas]
        assert 24 <= sum(more) <= 33

    async def test_a_silent_ledger_is_not_called_for_each_request(
        self, replicas: list[Leases], ledger: SharedLedger, clock: FakeClock
    ) -> None:
        ledger.is_silent = True
        await allowed(replicas[0], REQUESTS, 50)
        assert ledger.calls == 1
        ledger.is_silent = False
        clock.now += RETRY_S
        await allowed(replicas[0], REQUESTS, 1)
        assert ledger.calls == 2

    async def test_places_go_on_too(self, replicas: list[Leases], ledger: SharedLedger) -> None:
        limit = Budget("ann", "requests in flight", 6)
        async with AsyncExitStack() as stack:
            for leases in replicas:
                await stack.enter_async_context(leases.hold(limit))
            ledger.is_silent = True
            await stack.enter_async_context(replicas[2].hold(limit))
            with pytest.raises(TooManyRequests):
                await stack.enter_async_context(replicas[2].hold(limit))
