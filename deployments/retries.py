"""Calls that are made again after a replica, or a picture in the object store, was lost.

A request changes nothing, so it may be repeated until its first delta has gone out. It is, on other
replicas, ``MAX_ATTEMPTS`` times in all: a request that kills its replica must not kill all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from enum import Enum
from itertools import count
from typing import TypeVar

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.exceptions import RayServeException

from raylens.core.errors import RaylensError
from raylens.core.types import Delta

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
PAUSE_S = 0.1
"""Between two attempts. The handle learns meanwhile that a replica is gone."""
_LOSSES = (
    RayActorError,
    WorkerCrashedError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
)


class Loss(Enum):
    """What a call has lost."""

    REPLICA = "its replica"
    ARGUMENT = "a picture, whose replica or node died"


def find_loss(error: BaseException | None) -> Loss | None:
    """Return what was lost, if that is why a call has failed."""
    if isinstance(error, RayTaskError):  # of an argument, or of the replica's own call
        return Loss.ARGUMENT if isinstance(error.cause, _LOSSES) else None
    if isinstance(error, RayServeException):
        return Loss.ARGUMENT if isinstance(error.__cause__, _LOSSES) else None
    return Loss.REPLICA if isinstance(error, _LOSSES) else None


async def retried(
    attempt: Callable[[], AsyncGenerator[Delta, None]],
    may_repeat: Callable[[Loss], Awaitable[bool]],
    is_streamed: bool,
) -> AsyncGenerator[Delta, None]:
    """Yield the deltas of the first attempt that has any or, unless the answer is streamed, of the
    first one that is complete. The first delta then says for how long it was held.

    An attempt raises a ``RaylensError`` whose cause is that of Ray. If there is no other attempt,
    that is raised.
    """
    now = asyncio.get_running_loop().time
    for number in count(1):
        has_begun = False
        first_at = 0.0
        held: list[Delta] = []
        try:
            async with aclosing(attempt()) as deltas:
                async for delta in deltas:
                    if is_streamed:
                        has_begun = True
                        yield delta
                    else:
                        if not held:
                            first_at = now()
                        held.append(delta)
            for index, delta in enumerate(held):
                yield delta if index else replace(delta, held_s=now() - first_at)
            return
        except RaylensError as error:
            loss = None if has_begun else _loss_before(number, error)
            if loss is None or not await may_repeat(loss):
                raise
        await asyncio.sleep(PAUSE_S)


async def retried_call(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return the result of the first attempt that loses nothing. Raises as :func:`retried` does."""
    for number in count(1):
        try:
            return await attempt()
        except RaylensError as error:
            if _loss_before(number, error) is None:
                raise
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _loss_before(number: int, error: RaylensError) -> Loss | None:
    """Return what the attempt of this number has lost, if that allows for another."""
    loss = find_loss(error.__cause__)
    if loss is None or number >= MAX_ATTEMPTS:
        return None
    logger.warning("attempt %d has lost %s", number, loss.value)
    return loss
