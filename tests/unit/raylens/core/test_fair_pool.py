"""Threads that several clients share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait

import pytest

from raylens.core.fair_pool import FairPool
from raylens.core.fairness import JOB_RANK_DELAY_S
from raylens.core.types import Caller, Priority


class Pool:
    """Threads with a clock that only work moves on."""

    def __init__(self, threads: int = 1) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self._pool = FairPool(threads, "test", lambda: self.now)
        self._gate = threading.Event()

    def hold(self) -> None:
        """Keep the thread busy until :meth:`finish`."""
        self._gate.clear()
        started = threading.Event()

        def block() -> None:
            started.set()
            self._gate.wait()

        self.submit("blocker", run=block)
        started.wait()

    def submit(
        self,
        client: str,
        seconds: float = 0.0,
        priority: Priority = Priority.INTERACTIVE,
        run: Callable[[], None] | None = None,
    ) -> Future[None]:
        def work() -> None:
            self.order.append(client)
            self.now += seconds

        return self._pool.submit(run or work, Caller("id", 0.0, client, priority))

    def finish(self, *futures: Future[None]) -> str:
        """Let the work go on. Returns the clients in the order in which they were served."""
        self._gate.set()
        wait(futures)
        return " ".join(self.order)


def wait_for(event: threading.Event) -> None:
    event.wait()


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_whoever_has_had_the_least_goes_first(pool: Pool) -> None:
    pool.hold()
    flood = [pool.submit("flood", 1.0) for _ in range(5)]
    quiet = [pool.submit("quiet", 1.0) for _ in range(2)]
    assert pool.finish(*flood, *quiet) == "flood quiet flood quiet flood flood flood"


def test_shares_are_of_time_not_of_pictures(pool: Pool) -> None:
    pool.hold()
    large = [pool.submit("large", 3.0) for _ in range(2)]
    small = [pool.submit("small", 1.0) for _ in range(5)]
    assert pool.finish(*large, *small) == "large small small small large small small"


def test_nobody_saves_up_turns(pool: Pool) -> None:
    pool.hold()
    early = [pool.submit("a", 10.0), pool.submit("b", 1.0)]
    assert pool.finish(*early) == "a b"
    pool.hold()
    later = [pool.submit(client, 1.0) for client in "aabb"]
    assert pool.finish(*later) == "a b a b a b"  # both had left: neither has an advantage


def test_a_client_that_comes_back_begins_where_the_others_are(pool: Pool) -> None:
    pool.hold()
    busy = [pool.submit("busy", 1.0) for _ in range(4)]
    seen = threading.Event()
    late: list[Future[None]] = []

    def bring_another() -> None:
        late.extend(pool.submit("back", 1.0) for _ in range(3))
        seen.set()

    pool.submit("busy", run=bring_another)
    busy += [pool.submit("busy", 1.0) for _ in range(2)]
    pool._gate.set()
    seen.wait()
    assert pool.finish(*busy, *late) == "busy busy busy busy busy back busy back back"


def test_running_work_counts_too() -> None:
    pool = Pool(threads=2)
    video = threading.Event()
    pool.submit("video", run=lambda: wait_for(video))
    pool.submit("busy", 30.0).result()  # on the other thread, while the video runs
    pool.hold()
    busy = [pool.submit("busy", 1.0) for _ in range(2)]
    new = [pool.submit("new", 1.0) for _ in range(2)]
    pool.order.clear()
    assert pool.finish(*busy, *new) == "busy new busy new"  # it has no credit of 30 s
    video.set()


def test_jobs_give_way_but_not_forever(pool: Pool) -> None:
    pool.hold()
    job = pool.submit("a", priority=Priority.JOB)
    requests = [pool.submit("b", JOB_RANK_DELAY_S + 1)]
    pool.now += 1
    requests.append(pool.submit("c"))
    assert pool.finish(job, *requests) == "b c a"
    pool.order.clear()
    pool.hold()
    job = pool.submit("a", priority=Priority.JOB)
    pool.now += JOB_RANK_DELAY_S + 1
    request = pool.submit("b")
    assert pool.finish(job, request) == "a b"


def test_canceled_work_is_passed_over(pool: Pool) -> None:
    pool.hold()
    canceled = pool.submit("a")
    other = pool.submit("b")
    assert canceled.cancel()
    assert pool.finish(other) == "b"


def test_errors_reach_the_caller_and_the_thread_goes_on(pool: Pool) -> None:
    def fail() -> None:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        pool.submit("a", run=fail).result()
    assert pool.finish(pool.submit("b")) == "b"


def test_clients_that_have_left_are_forgotten(pool: Pool) -> None:
    for number in range(50):
        pool.submit(f"client {number}", 1.0).result()
    pool._pool._threads.shutdown()
    assert not pool._pool._seconds
    assert not pool._pool._unfinished
