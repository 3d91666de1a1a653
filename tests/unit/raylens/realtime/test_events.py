from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylens.core.errors import InvalidRequest
from raylens.core.types import Caption, Detect, Location, Point, Query, Region, Task
from raylens.jobs.intervals import Interval, find_intervals
from raylens.realtime.events import (
    Event,
    EventDetector,
    EventType,
    FrameDetails,
    count_objects,
    judge,
    subject_of,
)
from raylens.realtime.pipeline import FrameResult

VERDICTS = {"y": True, "n": False, "?": None}
_STEPS = st.floats(0.001, 60.0)
_FRAMES = st.lists(st.tuples(_STEPS, st.sampled_from([True, False, None])), max_size=60)


def feed(text: str, counts: dict[int, int] | None = None, enter: int = 2, leave: int = 2):
    """Return the events at each of the frames 100, 101 …, one a second, and at the end."""
    detector = EventDetector("cat", enter, leave)
    counts = counts or {}
    found = [
        detector.add(
            float(number), VERDICTS[letter], FrameDetails(100 + number, counts.get(number))
        )
        for number, letter in enumerate(text)
    ]
    return [*found, detector.finish()]


@given(_FRAMES, st.integers(1, 5), st.integers(1, 5))
def test_live_events_equal_the_intervals_of_the_finished_sequence(frames, enter, leave) -> None:
    times: list[float] = []
    for step, _ in frames:
        times.append((times[-1] if times else 0.0) + step)
    verdicts = [verdict for _, verdict in frames]
    detector = EventDetector("cat", enter, leave)
    events = [
        event
        for number, (time, verdict) in enumerate(zip(times, verdicts, strict=True))
        for event in detector.add(time, verdict, FrameDetails(number))
    ]
    events += detector.finish()
    starts = [event for event in events if event.type is EventType.STARTED]
    ends = [event for event in events if event.type is EventType.ENDED]
    intervals = [Interval(event.time_s, event.ended_at) for event in ends if event.ended_at]
    assert intervals == find_intervals(times, verdicts, enter, leave)
    assert [event.time_s for event in starts] == [event.time_s for event in ends]


def test_an_event_comes_with_the_frame_that_decides_it_and_names_the_first_one() -> None:
    found = feed("nnyyynn")
    assert [len(events) for events in found] == [0, 0, 0, 1, 0, 0, 1, 0]
    assert found[3] == [Event(EventType.STARTED, "cat", 1.5, 102)]
    assert found[6] == [Event(EventType.ENDED, "cat", 1.5, 105, ended_at=4.5)]
    assert found[6][0].duration_s == 3.0


def test_the_end_of_the_video_ends_what_is_open() -> None:
    assert feed("nyyn")[-1] == [Event(EventType.ENDED, "cat", 0.5, 103, ended_at=3.0)]
    detector = EventDetector("cat", enter=1)
    detector.add(2.0, True, FrameDetails(0))
    (ended,) = detector.finish(7.5)
    assert (ended.time_s, ended.ended_at, ended.duration_s) == (2.0, 7.5, 5.5)
    assert detector.finish(9.0) == []


def test_a_start_has_its_frames_count_and_an_end_the_largest() -> None:
    # The 9 belongs to a run that was too short, and so to no event.
    found = feed("ynyyy?nn", {0: 9, 2: 1, 3: 4, 4: 2, 5: 3, 6: 0, 7: 0})
    started, ended = (event for events in found for event in events)
    assert (started.count, ended.count) == (1, 4)
    assert feed("yynn")[1][0].count is None


def test_a_clock_that_is_set_back_gives_no_negative_duration() -> None:
    detector = EventDetector("cat", 1, 1)
    (started,) = detector.add(10.0, True, FrameDetails(0))
    (ended,) = detector.add(3.0, False, FrameDetails(1))
    assert (started.time_s, ended.ended_at) == (10.0, 10.0)
    detector.add(11.0, True, FrameDetails(2))
    (ended,) = detector.finish(1.0)
    assert ended.duration_s == 0.5


def test_json_leaves_out_what_an_event_does_not_have() -> None:
    started = Event(EventType.STARTED, "a cat", 1 / 3, 7)
    assert json.loads(json.dumps(started.as_json())) == {
        "type": "started",
        "subject": "a cat",
        "time_s": 0.333333,
        "frame_id": 7,
    }
    ended = Event(EventType.ENDED, "a cat", 0.0, 9, 0, 1.1234567)
    assert ended.as_json() == {
        "type": "ended",
        "subject": "a cat",
        "time_s": 0.0,
        "ended_at": 1.123457,
        "duration_s": 1.123457,
        "frame_id": 9,
        "count": 0,
    }


BOX = Region(0.1, 0.1, 0.2, 0.2)
SPOT = Location(0.5, 0.5)


@pytest.mark.parametrize(
    ("task", "result", "min_count", "verdict"),
    [
        (Detect("cat"), FrameResult(regions=(BOX,)), 1, True),
        (Detect("cat"), FrameResult(regions=(BOX,)), 2, False),
        (Detect("cat"), FrameResult(), 1, False),
        (Point("cat"), FrameResult(locations=(SPOT, SPOT)), 2, True),
        (Point("cat"), FrameResult(regions=(BOX,)), 1, False),
        (Query("Is it on?"), FrameResult("Yes, it is."), 1, True),
        (Query("Is it on?"), FrameResult("no"), 1, False),
        (Query("Is it on?"), FrameResult("It may be."), 1, None),
        (Caption(), FrameResult("yes"), 1, None),
        (Detect("cat"), None, 1, None),
        (Query("Is it on?"), None, 1, None),
    ],
)
def test_a_result_shows_what_its_task_looks_for(task, result, min_count, verdict) -> None:
    assert judge(task, result, min_count) is verdict


def test_only_objects_are_counted() -> None:
    result = FrameResult("yes", (BOX,), (SPOT, SPOT))
    tasks: list[Task] = [Detect("cat"), Point("cat"), Query("Is it on?")]
    assert [count_objects(task, result) for task in tasks] == [1, 2, None]
    assert [subject_of(task) for task in tasks] == ["cat", "cat", "Is it on?"]


def test_what_can_have_no_events_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        subject_of(Caption())
    assert refused.value.field == "events"
    for enter, leave, field in ((0, 1, "enter"), (1, 0, "leave")):
        with pytest.raises(InvalidRequest) as refused:
            EventDetector("cat", enter, leave)
        assert refused.value.field == field
    with pytest.raises(InvalidRequest) as refused:
        judge(Detect("cat"), FrameResult(), 0)
    assert refused.value.field == "min_count"
