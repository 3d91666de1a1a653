from __future__ import annotations

import asyncio

import pytest

from raylens.core.concurrency import until_first


async def test_the_others_are_canceled_before_it_returns() -> None:
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("wait")

    ended: list[str] = []
    await until_first(wait(), asyncio.sleep(0), wait())
    assert ended == ["wait", "wait"]


async def test_the_error_of_the_first_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await until_first(asyncio.sleep(60), fail())
    assert len(asyncio.all_tasks()) == 1


async def test_cancellation_reaches_all() -> None:
    running = asyncio.create_task(until_first(asyncio.sleep(60), asyncio.sleep(60)))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(asyncio.all_tasks()) == 1
