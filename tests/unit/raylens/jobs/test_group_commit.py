from __future__ import annotations

import asyncio

import pytest

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
            raise OSError("the disk is full")
        return items

    group_commit = GroupCommit(write)
    results = await asyncio.gather(
        *(group_commit.submit(number) for number in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, OSError, int]
    assert await group_commit.submit(7) == 7


async def test_an_item_is_written_even_if_its_caller_is_canceled() -> None:
    written: list[int] = []
    can_write = asyncio.Event()

    async def write(items: list[int]) -> list[int]:
        await can_write.wait()
        written.extend(items)
        return items

    group_commit = GroupCommit(write)
    canceled = asyncio.create_task(group_commit.submit(1))
    waiting = asyncio.create_task(group_commit.submit(2))
    await asyncio.sleep(0.01)
    canceled.cancel()
    can_write.set()
    assert await waiting == 2
    assert written == [1, 2]
    with pytest.raises(asyncio.CancelledError):
        await canceled
