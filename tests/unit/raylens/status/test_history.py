"""What nodes export adds up, whatever comes and goes."""

from __future__ import annotations

from raylens.status import metrics as m
from raylens.status.history import KEPT_S, History

A, B = "10.0.0.1:8080", "10.0.0.2:8080"
REQUESTS_OF_SMALL = (m.REQUESTS, "small", "200")


def requests(count: float, replica: str = "r1", **labels: str) -> str:
    values = {"method": "POST", "model": "small", "status": "200", "application": "app", **labels}
    text = ",".join(f'{name}="{value}"' for name, value in values.items())
    return f'{m.REQUESTS}{{{text},replica="{replica}"}} {count}\n'


def waiting(count: float, replica: str = "r1") -> str:
    return f'{m.WAITING}{{model="small",application="app",replica="{replica}"}} {count}\n'


def counted(history: History) -> float:
    return history.moments[-1].counts.get(REQUESTS_OF_SMALL, 0.0)


def test_only_growth_since_the_first_page_counts() -> None:
    history = History("app")
    history.add(0, {A: requests(100)})
    assert counted(history) == 0
    history.add(10, {A: requests(103)})
    assert counted(history) == 3


def test_a_replica_that_starts_later_counts_from_zero() -> None:
    history = History("app")
    history.add(0, {A: requests(1)})
    history.add(10, {A: requests(1) + requests(4, "r2")})
    assert counted(history) == 4


def test_replicas_and_nodes_are_added_up() -> None:
    history = History("app")
    history.add(0, {A: "", B: ""})
    history.add(10, {A: requests(2) + waiting(1), B: requests(3, "r2") + waiting(4, "r2")})
    assert counted(history) == 5
    assert history.moments[-1].gauges[m.WAITING, "small"] == 5


def test_a_counter_that_begins_again_has_grown_by_its_value() -> None:
    history = History("app")
    history.add(0, {A: requests(50)})
    history.add(10, {A: requests(2)})
    assert counted(history) == 2


def test_a_node_that_was_silent_for_a_time_loses_nothing() -> None:
    history = History("app")
    history.add(0, {A: requests(5), B: requests(1, "r2") + waiting(3)})
    history.add(10, {A: requests(6), B: None})
    assert (history.moments[-1].nodes, history.moments[-1].answering) == (2, 1)
    assert counted(history) == 1
    assert (m.WAITING, "small") not in history.moments[-1].gauges
    history.add(20, {A: requests(6), B: requests(9, "r2")})
    assert counted(history) == 9


def test_the_end_of_a_node_takes_nothing_back() -> None:
    history = History("app")
    history.add(0, {A: requests(0), B: requests(0, "r2")})
    history.add(10, {A: requests(2), B: requests(3, "r2")})
    history.add(20, {A: requests(2)})
    assert counted(history) == 5
    assert history.moments[-1].nodes == 1


def test_requests_that_ask_for_no_work_and_other_applications_do_not_count() -> None:
    history = History("app")
    history.add(0, {A: ""})
    history.add(
        10,
        {
            A: requests(1, method="GET")
            + requests(2, method="none")
            + requests(4, application="other")
            + requests(8, method="WS")
        },
    )
    assert counted(history) == 8


def test_of_the_load_of_replicas_the_greatest_counts() -> None:
    history = History("app")
    loads = (
        f'{m.LOAD}{{model="small",replica="a"}} 0.5\n{m.LOAD}{{model="small",replica="b"}} 0.9\n'
    )
    history.add(0, {A: loads})
    assert history.moments[-1].gauges[m.LOAD, "small"] == 0.9


def test_old_moments_are_dropped() -> None:
    history = History("app")
    times = [10.0 * i for i in range(200)]
    for time in times:
        history.add(time, {A: ""})
    assert [moment.time for moment in history.moments] == [
        time for time in times if time >= times[-1] - KEPT_S
    ]


def test_a_clock_that_is_set_back_begins_another_history() -> None:
    history = History("app")
    for time, count in ((1000, 1), (1010, 2), (500, 4), (510, 5)):
        history.add(time, {A: requests(count)})
    assert [moment.time for moment in history.moments] == [500, 510]
    begin, end = (moment.counts[REQUESTS_OF_SMALL] for moment in history.moments)
    assert end - begin == 1
