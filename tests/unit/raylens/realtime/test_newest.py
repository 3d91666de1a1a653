"""A place for the newest item."""

from __future__ import annotations

import asyncio

import pytest

from raylens.realtime.newest import Closed, Newest


async def test_the_newest_item_replaces_the_one_that_waits() -> None:
    newest: Newest[int] = Newest()
    assert [newest.put(number) for number in range(3)] == [None, 0, 1]
    assert await newest.get() == 2
    assert newest.put(3) is None
    assert await newest.get() == 3


async def test_a_consumer_waits_for_an_item() -> None:
    newest: Newest[int] = Newest()
    consumer = asyncio.create_task(newest.get())
    await asyncio.sleep(0)
    assert not consumer.done()
    newest.put(1)
    assert await consumer == 1


async def test_nothing_comes_after_the_end() -> None:
    newest: Newest[int] = Newest()
    consumer = asyncio.create_task(newest.get())
    await asyncio.sleep(0)
    newest.close()
    newest.put(1)
    with pytest.raises(Closed):
        await consumer
    with pytest.raises(Closed):
        await newest.get()


async def test_an_item_that_is_put_back_doesnt_replace_a_newer_one() -> None:
    newest: Newest[int] = Newest()
    assert newest.put_back(1) is None
    assert newest.take() == 1
    assert newest.is_empty
    newest.put(2)
    assert newest.put_back(1) == 1
    assert await newest.get() == 2
    assert newest.take() is None
