"""What sessions hold counts among the bodies that arrive, and gives way as they do."""

from __future__ import annotations

from raylens.api.held_bytes import HeldBytes
from raylens.api.request_body import UnfinishedBodies


class Session:
    def __init__(self, bodies: UnfinishedBodies, client: str = "a") -> None:
        self.losses = 0
        self.held = HeldBytes(bodies, client, self._lose)

    def _lose(self) -> None:
        self.losses += 1


def test_what_is_given_back_leaves_room_for_others() -> None:
    bodies = UnfinishedBodies(max_bytes=100)
    one, other = Session(bodies), Session(bodies, "b")
    one.held.set(90)
    one.held.set(40)
    one.held.add(20)
    one.held.add(-50)
    other.held.set(90)
    one.held.set(0)
    other.held.set(100)
    assert (one.losses, other.losses) == (0, 0)
    other.held.set(0)
    other.held.add(-5)
    assert other.held.count == 0
    one.held.set(100)
    assert one.losses == 0


def test_the_client_that_holds_the_most_gives_way() -> None:
    bodies = UnfinishedBodies(max_bytes=100)
    large, older, newer = Session(bodies), Session(bodies, "b"), Session(bodies, "b")
    large.held.set(60)
    older.held.set(20)
    newer.held.set(10)
    older.held.set(35)
    assert [session.losses for session in (large, older, newer)] == [1, 0, 0]
    assert large.held.count == 0
    large.held.set(50)
    newer.held.set(20)  # b holds more, and the older session of b goes first
    assert [session.losses for session in (large, older, newer)] == [1, 1, 0]


def test_who_lost_may_hold_again() -> None:
    bodies = UnfinishedBodies(max_bytes=100)
    session = Session(bodies)
    session.held.set(101)
    assert (session.losses, session.held.count) == (1, 0)
    session.held.set(100)
    assert (session.losses, session.held.count) == (1, 100)


def test_a_body_takes_the_room_of_a_session_and_the_other_way_round() -> None:
    bodies = UnfinishedBodies(max_bytes=100)
    session = Session(bodies)
    session.held.set(60)
    with bodies.enter("b") as body:
        body.grow(50)
        assert (session.losses, body.is_lost) == (1, False)
        session.held.set(40)
        session.held.add(20)
        assert session.losses == 2
        session.held.set(45)
        body.grow(10)
        assert body.is_lost


def test_places_are_limited_in_number_too() -> None:
    bodies = UnfinishedBodies(limit=10, limit_per_client=2)
    sessions = [Session(bodies) for _ in range(3)]
    for session in sessions:
        session.held.set(1)
    assert [session.losses for session in sessions] == [1, 0, 0]
