from __future__ import annotations

import asyncio

import pytest

from raylens.jobs.group_commit import GroupCommit


async def test_what_comes_while_a_batch_is_written_goes_together() -> None:
    batches: list[list[int]] = []
    go = asyncio.Event()

    async def write(items: list[int]) -> list[int]:
        batches.append(items)
        await go.wait()
        return [item * 10 for item in items]

    batcher = GroupCommit(write, limit=3)
    calls = [asyncio.create_task(batcher(0))]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(batcher(number)) for number in range(1, 6)]
    await asyncio.sleep(0.01)
    go.set()
    assert await asyncio.gather(*calls) == [0, 10, 20, 30, 40, 50]
    assert batches == [[0], [1, 2, 3], [4, 5]]


async def test_a_failure_is_its_batchs_own() -> None:
    async def write(items: list[int]) -> list[int]:
        if 1 in items:
            raise OSError("the disk is full")
        return items

    batcher = GroupCommit(write)
    results = await asyncio.gather(
        *(batcher(number) for number in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, OSError, int]
    assert await batcher(7) == 7


async def test_an_item_is_written_though_its_caller_has_gone() -> None:
    written: list[int] = []
    go = asyncio.Event()

    async def write(items: list[int]) -> list[int]:
        await go.wait()
        written.extend(items)
        return items

    batcher = GroupCommit(write)
    leaves, stays = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
    await asyncio.sleep(0.01)
    leaves.cancel()
    go.set()
    assert await stays == 2
    assert written == [1, 2]
    with pytest.raises(asyncio.CancelledError):
        await leaves
