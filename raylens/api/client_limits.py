"""Holds each client to its limits, and tells it where it stands."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylens.api.access_log import current_record
from raylens.api.errors import error_response
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
    """

    def __init__(self, app: ASGIApp, leases: Leases, limits: ClientLimits) -> None:
        self._app = app
        self._leases = leases
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        key = current_key.get()
        limits = self._limits if key is None else key.limits.or_else(self._limits)
        is_post = scope["method"] == "POST"
        is_stream = route_path(scope).endswith("/events")
        rates = _rates(limits) if is_post else []
        places = _places(limits, is_post, is_stream)
        if not (rates or places):
            await self._app(scope, receive, send)
            return
        standings: list[Standing] = []

        async def send_with_standing(message: Message) -> None:
            if message["type"] == "http.response.start" and standings:
                _add_headers(MutableHeaders(scope=message), standings)
            await send(message)

        async with AsyncExitStack() as stack:
            try:
                standings = [self._leases.standing(budget) for budget in rates]
                for budget in places:
                    await stack.enter_async_context(self._leases.hold(budget))
                for index, budget in enumerate(rates):
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
                self._charge_tokens(rates)

    def _charge_tokens(self, rates: list[Budget]) -> None:
        record = current_record.get()
        for budget in rates:
            if budget.name == TOKENS and record is not None:
                self._leases.charge(budget, record.prompt_tokens + record.completion_tokens)


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
