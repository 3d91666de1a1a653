"""Holds each client to its limits, and tells it where it stands."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.access_log import current_record
from raylens.api.errors import error_response
from raylens.api.middleware import REPEATED_HEADER
from raylens.api.paths import route_path
from raylens.core.client_limits import ClientLimits
from raylens.core.errors import RaylensError, TooManyRequests
from raylens.core.fairness import current_client
from raylens.core.keys import current_key
from raylens.core.leases import Leases, Standing
from raylens.core.ledger import MINUTE_S, Budget

REQUESTS = "requests"
TOKENS = "tokens"
RATE_HEADERS = (
    "RateLimit",
    "RateLimit-Policy",
    *(
        f"X-RateLimit-{part}-{name}"
        for name in ("Requests", "Tokens")
        for part in ("Limit", "Remaining", "Reset")
    ),
)


class ClientLimitsMiddleware:
    """Refuses a POST whose client has used up one of its limits, before its body is read.

    ``limits`` are those of clients whose key sets none. The other methods count towards no limit,
    except that streams of events have one of their own.

    What a dead replica held for a request that the proxy repeats is free only after a while. Such a
    request takes its place even beyond the limit, where it counts for the others, and costs no
    rate. To bound what clients gain that mark requests themselves, repeated requests have budgets
    of their own, of the same size. One beyond these is held to the limits as any other.
    """

    def __init__(self, app: ASGIApp, leases: Leases, limits: ClientLimits) -> None:
        self._app = app
        self._leases = leases
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = own_limits(self._limits)
        is_post = scope["method"] == "POST"
        is_stream = route_path(scope).endswith("/events")
        rates = _rates(limits) if is_post else []
        places = _places(limits, is_post, is_stream)
        if not (rates or places):
            await self._app(scope, receive, send)
            return
        is_repeated = REPEATED_HEADER in Headers(scope=scope)
        standings: list[Standing] = []

        async def send_with_standing(message: Message) -> None:
            if message["type"] == "http.response.start" and standings:
                _add_headers(MutableHeaders(scope=message), standings)
            await send(message)

        async with AsyncExitStack() as stack:
            try:
                standings = [self._leases.standing(budget) for budget in rates]
                for budget in places:
                    may_exceed = is_repeated and await self._hold_repeated(stack, budget)
                    await stack.enter_async_context(self._leases.hold(budget, may_exceed))
                for index, budget in enumerate(rates):
                    if is_repeated and await self._spend_repeated(budget):
                        continue
                    cost = int(budget.name == REQUESTS)
                    standings[index] = await self._leases.spend(budget, cost)
                    _check(standings[index])
            except RaylensError as error:
                response = error_response(route_path(scope), error)
                await response(scope, receive, send_with_standing)
                return
            try:
                await self._app(scope, receive, send_with_standing)
            finally:
                _charge_tokens(self._leases, rates)
                if is_repeated:
                    _charge_tokens(self._leases, [_of_repeated(budget) for budget in rates])

    async def _hold_repeated(self, stack: AsyncExitStack, budget: Budget) -> bool:
        """Return whether there is a place for a repeated request, which is held then."""
        try:
            await stack.enter_async_context(self._leases.hold(_of_repeated(budget)))
        except TooManyRequests:
            return False
        return True

    async def _spend_repeated(self, budget: Budget) -> bool:
        """Return whether a rate allows a repeated request, which costs nothing else then."""
        cost = int(budget.name == REQUESTS)
        return not (await self._leases.spend(_of_repeated(budget), cost)).retry_after


def own_limits(limits: ClientLimits) -> ClientLimits:
    """Return the limits of the current client; ``limits`` are those of clients that have none."""
    key = current_key.get()
    return limits if key is None else key.limits.or_else(limits)


@asynccontextmanager
async def counted(leases: Leases, limits: ClientLimits) -> AsyncIterator[None]:
    """Count what happens within the context as one request of the current client.

    Raises ``TooManyRequests`` before it begins.
    """
    rates = _rates(limits)
    async with AsyncExitStack() as stack:
        for budget in _places(limits, is_post=True, is_stream=False):
            await stack.enter_async_context(leases.hold(budget))
        for budget in rates:
            _check(await leases.spend(budget, int(budget.name == REQUESTS)))
        try:
            yield
        finally:
            _charge_tokens(leases, rates)


@asynccontextmanager
async def session_place(leases: Leases, limits: ClientLimits) -> AsyncIterator[None]:
    """Hold a session's place of the current client. Raises ``TooManyRequests``."""
    async with AsyncExitStack() as stack:
        if limits.max_sessions is not None:
            budget = Budget(current_client.get(), "sessions", limits.max_sessions)
            await stack.enter_async_context(leases.hold(budget))
        yield


def _charge_tokens(leases: Leases, rates: list[Budget]) -> None:
    record = current_record.get()
    for budget in rates:
        if budget.name.endswith(TOKENS) and record is not None:
            leases.charge(budget, record.prompt_tokens + record.completion_tokens)


def _rates(limits: ClientLimits) -> list[Budget]:
    named = ((TOKENS, limits.tokens_per_minute), (REQUESTS, limits.requests_per_minute))
    client = current_client.get()
    return [Budget(client, name, limit) for name, limit in named if limit is not None]


def _places(limits: ClientLimits, is_post: bool, is_stream: bool) -> list[Budget]:
    client = current_client.get()
    places = []
    if is_post and limits.max_in_flight is not None:
        places.append(Budget(client, "requests in flight", limits.max_in_flight))
    if is_stream and limits.max_event_streams is not None:
        places.append(Budget(client, "event streams", limits.max_event_streams))
    return places


def _of_repeated(budget: Budget) -> Budget:
    """Return the budget of a client's repeated requests."""
    return replace(budget, name=f"repeated {budget.name}")


def _check(standing: Standing) -> None:
    """Raise ``TooManyRequests`` if a client has to wait."""
    if standing.retry_after:
        budget = standing.budget
        message = f"your limit of {budget.limit} {budget.name} a minute is used up"
        raise TooManyRequests(message, None, budget.limit, None, standing.retry_after)


def _add_headers(headers: MutableHeaders, standings: list[Standing]) -> None:
    """Add the fields of draft-ietf-httpapi-ratelimit-headers-10, and those that OpenAI's clients
    know."""
    policies, states = [], []
    for standing in standings:
        budget = standing.budget
        left = max(0, math.floor(standing.left))
        reset = math.ceil(standing.full_after)
        policies.append(f'"{budget.name}";q={budget.limit};w={MINUTE_S:.0f}')
        states.append(f'"{budget.name}";r={left};t={reset}')
        name = budget.name.capitalize()
        headers[f"X-RateLimit-Limit-{name}"] = str(budget.limit)
        headers[f"X-RateLimit-Remaining-{name}"] = str(left)
        headers[f"X-RateLimit-Reset-{name}"] = f"{reset}s"
    headers["RateLimit-Policy"] = ", ".join(policies)
    headers["RateLimit"] = ", ".join(states)
