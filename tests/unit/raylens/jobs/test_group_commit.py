from __future__ import annotations

import asyncio

from raylens.core.errors import Overloaded
from raylens.jobs.group_commit import GroupCommit


async def test_items_that_arrive_during_a_write_share_the_next_batch() -> None:
    batches: list[list[int]] = []
    can_write = asyncio.Event()

    async def write(items: list[int]) -> list[int]:
        batches.append(items)
        await can_write.wait()
        return [item * 10 for item in items]

    group_commit = GroupCommit(write, limit=3)
    calls = [asyncio.create_task(group_commit.submit(0))]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(group_commit.submit(number)) for number in range(1, 6)]
    await asyncio.sleep(0.01)
    can_write.set()
    assert await asyncio.gather(*calls) == [0, 10, 20, 30, 40, 50]
    assert batches == [[0], [1, 2, 3], [4, 5]]


async def test_an_item_that_fails_does_not_fail_its_batch() -> None:
    async def write(items: list[int]) -> list[int]:
        if 1 in items:
            raise TypeError("this item")
        return items

    group_commit = GroupCommit(write)
    results = await asyncio.gather(
        *(group_commit.submit(number) for number in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, TypeError, int]
    assert await group_commit.submit(7) == 7


async def test_a_store_that_is_away_fails_the_whole_batch_at_once() -> None:
    batches: list[list[int]] = []

    async def write(items: list[int]) -> list[int]:
        batches.append(items)
        raise Overloaded("away")

    group_commit = GroupCommit(write)
    calls = (group_commit.submit(number) for number in range(3))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [Overloaded] * 3
    assert batches == [[0, 1, 2]]


async def test_an_item_is_not_written_if_its_caller_is_canceled_before() -> None:
    written: list[int] = []
    can_write = asyncio.Event()

    async def write(items: list[int]) -> list[int]:
        await can_write.wait()
        written.extend(items)
        return items

    group_commit = GroupCommit(write)
    calls = [asyncio.create_task(group_commit.submit(number)) for number in range(2)]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(group_commit.submit(number)) for number in range(2, 5)]
    await asyncio.sleep(0.01)
    calls[0].cancel()  # its batch has begun
    calls[3].cancel()
    can_write.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert written == [0, 1, 2, 4]
    assert [type(result) for result in results[::3]] == [asyncio.CancelledError] * 2
