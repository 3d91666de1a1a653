from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.core.errors import Overloaded
from raylens.core.fairness import RESERVE, FairPlaces, check_share, reserve


def take_all(places: FairPlaces, client: str, stack: ExitStack) -> int:
    """Take places until one is refused, and return their number. The stack gives them back."""
    count = 0
    with suppress(Overloaded):
        while True:
            stack.enter_context(places.take(client))
            count += 1
    return count


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 48, 192])
def test_a_client_alone_gets_the_whole_limit(limit: int) -> None:
    with ExitStack() as stack:
        assert take_all(FairPlaces("requests are in flight", limit), "a", stack) == limit


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 48, 192])
def test_a_client_that_floods_leaves_room_for_others(limit: int) -> None:
    places = FairPlaces("requests are in flight", limit)
    with ExitStack() as stack:
        take_all(places, "flood", stack)
        stack.enter_context(places.take("another"))


def test_a_client_that_comes_late_gets_some_of_the_spare_places() -> None:
    places = FairPlaces("requests are in flight", 48)
    with places.take("first", 48), ExitStack() as stack:
        assert 1 <= take_all(places, "second", stack) < reserve(48)


def test_clients_that_ask_for_the_same_get_the_same() -> None:
    places = FairPlaces("requests are in flight", 48)
    with ExitStack() as stack:
        for _ in range(48):
            for client in ("first", "second"):
                with suppress(Overloaded):
                    stack.enter_context(places.take(client))
        # One place more or less changes a share by this much.
        assert abs(places.held("first") - places.held("second")) <= RESERVE


def test_the_message_tells_one_client_from_others() -> None:
    places = FairPlaces("requests are in flight", 8, "model")
    with places.take("a", 8), pytest.raises(Overloaded) as alone:
        places.check("a")
    assert alone.value.message == "8 requests are in flight; the limit is 8"
    with places.take("b", 2), places.take("a", 7), pytest.raises(Overloaded) as shared:
        places.check("a")
    assert shared.value.message == (
        "7 requests are in flight, beside 2 of other clients; the limit is 8, or less"
    )
    assert (shared.value.field, shared.value.limit, shared.value.actual) == ("model", 8, 7)


def test_places_that_were_given_back_can_be_taken_again() -> None:
    places = FairPlaces("requests are in flight", 2)
    for _ in range(3):
        with places.take("a", 2), pytest.raises(Overloaded):
            places.check("a")
    with pytest.raises(Overloaded):
        places.check("a", 3)
    places.check("a", 3, factor=2)


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 8)), max_size=200),
)
def test_no_order_of_requests_shuts_a_client_out(limit: int, asked: list[tuple[str, int]]) -> None:
    held = dict.fromkeys("abcde", 0)
    for client, count in asked:
        in_flight = sum(held.values())
        try:
            check_share("requests are in flight", count, held[client], in_flight, limit)
        except Overloaded:
            continue
        held[client] += count
        assert held[client] <= limit
        assert sum(held.values()) <= limit + reserve(limit)
    if all(held[other] <= 1 or other == "a" for other in held) and limit >= 16:
        check_share("requests are in flight", 1, 0, sum(held.values()), limit)
