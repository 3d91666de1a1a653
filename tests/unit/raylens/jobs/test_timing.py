from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from raylens.core.config import AppConfig
from raylens.core.errors import ModelFailed, Overloaded, RaylensError, UnsupportedMedia
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caption,
    Delta,
    FinishReason,
    ModelInfo,
    PictureFile,
    ProcessedPicture,
    Query,
    VisionRequest,
)
from raylens.jobs.blobs import BlobMissing, Blobs
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job, Progress
from raylens.jobs.types.base import Run
from raylens.jobs.types.timing import ANSWER_TOKENS, TaskTimingJob, TimingInput, question, yes_or_no

Says = Callable[[str, VisionRequest], str | RaylensError]
"""The answer to a request about the picture of this name."""


def _digest(name: str) -> str:
    return name.encode().hex().rjust(64, "0")


class FakeBlobs:
    """A picture's bytes are its name; one named ``gone`` isn't there."""

    async def load(self, digest: str) -> bytes:
        data = bytes.fromhex(digest).lstrip(b"\0")
        if data == b"gone":
            raise BlobMissing("it is not here")
        return data


class FakeService:
    def __init__(self, says: Says, warnings: tuple[str, ...] = ()) -> None:
        self._says = says
        self._warnings = warnings
        self._running = 0
        self.most_at_once = 0
        self.asked: list[tuple[str, VisionRequest]] = []

    async def generate(
        self, request: VisionRequest, pictures: Sequence[PictureFile]
    ) -> AsyncGenerator[Delta, None]:
        name = pictures[0].data.decode()
        self.asked.append((name, request))
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        await asyncio.sleep(0.001)
        self._running -= 1
        said = self._says(name, request)
        if isinstance(said, RaylensError):
            raise said
        yield Delta(said, finish_reason=FinishReason.STOP, warnings=self._warnings)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, deadline: float, identity: str
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        raise NotImplementedError


class FakeLlm:
    def __init__(self, says: Callable[[str], str | RaylensError]) -> None:
        self._says = says
        self.prompts: list[str] = []

    async def complete(self, prompt: str, deadline: float) -> str:
        self.prompts.append(prompt)
        said = self._says(prompt)
        if isinstance(said, RaylensError):
            raise said
        return said


@dataclass
class Reports:
    """What was told while a job ran; ``save`` breaks as if the process died, once there are so
    many."""

    told: list[tuple[Progress, dict[str, Any]]] = field(default_factory=list)
    dies_after: int | None = None

    async def save(self, progress: Progress, partial: dict[str, Any] | None) -> None:
        self.told.append((progress, copy.deepcopy(partial or {})))
        if len(self.told) == self.dies_after:
            raise asyncio.CancelledError


JOB = Job("j1", "task_timing_v1", {}, 0.0, 1e12, max_attempts=5, rank=0.0, attempts=1)


def _run(
    service: FakeService, llm: FakeLlm | None = None, reports: Reports | None = None, job: Job = JOB
) -> Run:
    config = AppConfig.model_validate({"models": [{"name": "moondream", "family": "moondream"}]})
    blobs = cast(Blobs, FakeBlobs())
    save = (reports or Reports()).save
    return Run(
        job, time.time() + 60, config.jobs, InferenceClient(service, config), blobs, llm, save
    )


def _given(names: str | Sequence[str], **fields: Any) -> TimingInput:
    """A frame of each name, a second apart."""
    images = [
        {"image": f"blob:{_digest(name)}", "timestamp": number} for number, name in enumerate(names)
    ]
    tasks = {} if "tasks" in fields else {"prompt": "wash a cup"}
    return TimingInput.model_validate({"images": images, **tasks, **fields})


def _answers(name: str, request: VisionRequest) -> str | RaylensError:
    """Pictures named y and n say so, others say what is no answer."""
    if isinstance(request.task, Caption):
        return f" a picture of {name}"
    return {"y": "Yes, they are.", "n": "no"}.get(name, "It is hard to say")


async def _output(names: str | Sequence[str], **fields: Any) -> dict[str, Any]:
    return await TaskTimingJob().run(_given(names, **fields), _run(FakeService(_answers)))


def _spans(output: dict[str, Any], number: int = 0) -> list[tuple[Any, Any]]:
    return [(span["start"], span["end"]) for span in output["tasks"][number]["intervals"]]


async def test_a_task_is_timed_from_yes_and_no() -> None:
    output = await _output("nnyyynn")
    assert output["tasks"] == [
        {"task": "wash a cup", "intervals": [{"start": 1.5, "end": 4.5, "seconds": 3.0}]}
    ]
    assert output["evidence"][2] == {
        "timestamp": 2.0,
        "description": "a picture of y",
        "answers": [True],
    }
    assert output["summary"] == "wash a cup: from 1.5 to 4.5 (3 s)."
    assert output["model"] == "moondream"
    assert "warnings" not in output


async def test_frames_are_described_once_and_asked_about_each_task() -> None:
    service = FakeService(lambda name, request: "yes" if "Is it b?" in str(request.task) else "no")
    output = await TaskTimingJob().run(_given("abc", tasks=["a", "Is it b?"]), _run(service))
    assert [task["task"] for task in output["tasks"]] == ["a", "Is it b?"]
    assert (_spans(output, 0), _spans(output, 1)) == ([], [(0.0, 2.0)])
    asked = [request.task for name, request in service.asked if name == "a"]
    assert [type(task) for task in asked] == [Caption, Query, Query]
    assert output["summary"] == "a: not seen.\nIs it b?: from 0.0 to 2.0 (2 s)."


async def test_answers_are_greedy_and_short_whatever_the_settings() -> None:
    service = FakeService(_answers)
    given = _given(
        "y", settings={"temperature": 1.5, "max_tokens": 300}, vlm_prompt="What do the hands do?"
    )
    await TaskTimingJob().run(given, _run(service))
    described, asked = (request for _, request in service.asked)
    assert described.task == Query("What do the hands do?")
    assert [request.sampling.temperature for request in (described, asked)] == [0.0, 0.0]
    assert [request.sampling.max_tokens for request in (described, asked)] == [300, ANSWER_TOKENS]


async def test_a_groups_requests_are_in_flight_together_and_groups_one_after_the_other() -> None:
    service, reports = FakeService(_answers), Reports()
    await TaskTimingJob().run(_given("nnyyyyynnnnn"), _run(service, reports=reports))
    assert service.most_at_once == 10
    assert [progress for progress, _ in reports.told] == [
        Progress(5, 12),
        Progress(10, 12),
        Progress(12, 12),
    ]


async def test_many_tasks_put_no_more_requests_in_flight() -> None:
    service = FakeService(_answers)
    await TaskTimingJob().run(
        _given("nnyyy", tasks=[f"task {number}" for number in range(16)]), _run(service)
    )
    assert (len(service.asked), service.most_at_once) == (5 * 17, 10)


async def test_frames_are_sorted_by_time() -> None:
    given = _given("nyyn")
    given.images.reverse()
    output = await TaskTimingJob().run(given, _run(FakeService(_answers)))
    assert [entry["timestamp"] for entry in output["evidence"]] == [0.0, 1.0, 2.0, 3.0]
    assert _spans(output) == [(0.5, 3.0)]


async def test_dates_come_back_as_dates_of_utc() -> None:
    given = _given(
        "nyynn",
        images=[
            {"image": f"blob:{_digest(name)}", "timestamp": date}
            for name, date in (
                ("n", "2026-03-01T12:00:00+02:00"),
                ("y", "2026-03-01T10:00:01Z"),
                ("y", "2026-03-01T10:00:02"),
                ("n", "2026-03-01T10:00:03.5+00:00"),
                ("n", "2026-03-01T10:00:04Z"),
            )
        ],
    )
    output = await TaskTimingJob().run(given, _run(FakeService(_answers)))
    start, end = "2026-03-01T10:00:00.500000+00:00", "2026-03-01T10:00:02.750000+00:00"
    assert output["tasks"][0]["intervals"] == [{"start": start, "end": end, "seconds": 2.25}]
    assert output["evidence"][0]["timestamp"] == "2026-03-01T10:00:00+00:00"


async def test_an_attempt_goes_on_from_what_the_last_one_has_seen() -> None:
    reports, given = Reports(dies_after=1), _given("nnyyyyynn")
    with pytest.raises(asyncio.CancelledError):
        await TaskTimingJob().run(given, _run(FakeService(_answers), reports=reports))
    second = FakeService(_answers)
    job = replace(JOB, output=reports.told[0][1], attempts=2)
    output = await TaskTimingJob().run(given, _run(second, job=job))
    assert [name for name, _ in second.asked] == ["y", "y", "y", "y", "n", "n", "n", "n"]
    assert output == await TaskTimingJob().run(given, _run(FakeService(_answers)))


async def test_a_stored_input_reads_as_the_one_that_was_sent() -> None:
    given = _given("nyn", tasks=["a", "b"], enter=3)
    assert TimingInput.model_validate(given.model_dump(mode="json", exclude_unset=True)) == given


async def test_a_bad_frame_is_unsure_with_its_error_and_the_others_count() -> None:
    def says(name: str, request: VisionRequest) -> str | RaylensError:
        bad = UnsupportedMedia("input.images.2.image: not a picture", "input.images.2.image")
        return bad if name == "bad" else _answers(name, request)

    output = await TaskTimingJob().run(
        _given(["y", "y", "bad", "gone", "n", "n"]), _run(FakeService(says))
    )
    bad, gone = output["evidence"][2:4]
    assert (bad["description"], bad["answers"], bad["error"]["code"]) == (
        None,
        [None],
        "unsupported_media",
    )
    assert (gone["answers"], gone["error"]["field"]) == ([None], "input.images.3.image")
    assert _spans(output) == [(0.0, 3.5)]
    assert output["warnings"] == ["2 of 6 frames have an error"]


async def test_what_another_attempt_may_mend_ends_this_one() -> None:
    def says(name: str, request: VisionRequest) -> str | RaylensError:
        return Overloaded("the queue is full") if name == "late" else _answers(name, request)

    reports, given = Reports(), _given(["y"] * 6 + ["late"])
    with pytest.raises(Overloaded):
        await TaskTimingJob().run(given, _run(FakeService(says), reports=reports))
    assert [progress.done for progress, _ in reports.told] == [5]


async def test_what_preprocessing_warns_of_is_told_once() -> None:
    service = FakeService(_answers, warnings=("decode: the file is damaged",))
    output = await TaskTimingJob().run(_given("nyynn"), _run(service))
    assert output["warnings"] == ["decode: the file is damaged"]


async def test_the_llm_reads_unsure_frames_from_their_description_and_words_the_summary() -> None:
    llm = FakeLlm(
        lambda prompt: (
            "YES." if "picture of u" in prompt and "by the description" in prompt else "A cup!"
        )
    )
    output = await TaskTimingJob().run(_given("nyuun"), _run(FakeService(_answers), llm))
    assert [entry["answers"] for entry in output["evidence"]] == [
        [False],
        [True],
        [True],
        [True],
        [False],
    ]
    assert _spans(output) == [(0.5, 4.0)]
    assert output["summary"] == "A cup!"
    assert len(llm.prompts) == 3
    assert "wash a cup: from 0.5 to 4.0 (3.5 s)." in llm.prompts[-1]
    assert "2.0: a picture of u (yes)" in llm.prompts[-1]


async def test_an_llm_that_says_nothing_of_use_changes_nothing() -> None:
    output = await TaskTimingJob().run(
        _given("nyyun"), _run(FakeService(_answers), FakeLlm(lambda _: " "))
    )
    assert output == await _output("nyyun")


async def test_the_llms_prompt_is_bounded() -> None:
    llm = FakeLlm(lambda prompt: "fine")
    service = FakeService(lambda name, request: "long words " * 500)
    await TaskTimingJob().run(_given("a" * 200, prompt="p" * 4000), _run(service, llm))
    assert max(len(prompt) for prompt in llm.prompts) < 7000
    assert llm.prompts[-1].count("long words") < 32 * 12
    assert "\n196.0: " in llm.prompts[-1]


async def test_an_llm_that_fails_for_good_costs_the_summary_only_and_is_asked_no_more() -> None:
    llm = FakeLlm(lambda _: ModelFailed("no such model"))
    output = await TaskTimingJob().run(_given("nuyyunnnnu"), _run(FakeService(_answers), llm))
    assert output["warnings"] == [
        "the language model failed, and the summary is without it: no such model"
    ]
    assert output["summary"] == "wash a cup: from 1.5 to 4.5 (3 s)."
    assert len(llm.prompts) <= 5


async def test_an_llm_that_is_busy_is_asked_again_by_another_attempt_and_given_up_by_the_last() -> (
    None
):
    def busy() -> FakeLlm:
        return FakeLlm(lambda _: Overloaded("busy"))

    reports = Reports()
    with pytest.raises(Overloaded):
        await TaskTimingJob().run(_given("nyyu"), _run(FakeService(_answers), busy(), reports))
    service = FakeService(_answers)
    job = replace(JOB, attempts=5, output=reports.told[-1][1])
    output = await TaskTimingJob().run(_given("nyyu"), _run(service, busy(), job=job))
    assert service.asked == []
    assert _spans(output) == [(0.5, 3.0)]
    assert output["warnings"] == ["the language model failed, and the summary is without it: busy"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yes", True),
        ("  YES!", True),
        ("Yes, somebody is.", True),
        ("**Yes**", True),
        ("No: nobody is there", False),
        ("no", False),
        ("No. No one is there", False),
        ("No one.", False),
        ("Yes, no doubt", True),
        ("yes or no", None),
        ("Yes/No", None),
        ("Not sure", None),
        ("yesterday", None),
        ("I think yes", None),
        ("nothing", None),
        ("", None),
        (None, None),
    ],
)
def test_an_answer_counts_by_its_first_word(text, says) -> None:
    assert yes_or_no(text) is says


def test_a_question_is_asked_as_it_stands_and_a_description_in_a_template() -> None:
    assert question("Is the {cup} clean? ") == "Is the {cup} clean? "
    asked = "Task: wash {cups}\nIs somebody doing this task in the picture? Answer yes or no."
    assert question("wash {cups}") == asked


def _frames(*timestamps: Any) -> list[dict[str, Any]]:
    return [{"image": f"blob:{_digest('y')}", "timestamp": timestamp} for timestamp in timestamps]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"images": _frames(0, 1, 2, 1.0)}, ("images", 3, "timestamp")),
        (
            {"images": _frames("2026-01-01T01:00:00+01:00", "2026-01-01")},
            ("images", 1, "timestamp"),
        ),
        ({"images": _frames(0, "2026-01-01")}, ("images", 1, "timestamp")),
        ({"images": _frames("2026-01-01", 0)}, ("images", 1, "timestamp")),
        ({"images": _frames(float("nan"))}, ("images", 0, "timestamp")),
        ({"images": _frames(0, float("inf"))}, ("images", 1, "timestamp")),
        ({"images": _frames(10**400)}, ("images", 0, "timestamp")),
        ({"images": _frames(True)}, ("images", 0, "timestamp")),
        ({"images": _frames(None)}, ("images", 0, "timestamp")),
        ({"images": _frames("soon")}, ("images", 0, "timestamp")),
        ({"images": _frames("0001-01-01T00:00:00+10:00")}, ("images", 0, "timestamp")),
        ({"images": []}, ("images",)),
        ({"images": [{"image": "https://x.test/", "timestamp": 0}]}, ("images", 0, "image")),
        ({"images": [{**_frames(0)[0], "time": 0}]}, ("images", 0, "time")),
        ({"tasks": []}, ("tasks",)),
        ({"tasks": ["a"] * 17}, ("tasks",)),
        ({"tasks": ["a", ""]}, ("tasks", 1)),
        ({"prompt": "a" * 4001}, ("prompt",)),
        ({"vlm_prompt": ""}, ("vlm_prompt",)),
        ({"enter": 0}, ("enter",)),
        ({"leave": 51}, ("leave",)),
        ({"fps": 3}, ("fps",)),
        ({"prompt": "a", "tasks": ["b"]}, ()),
    ],
)
def test_a_bad_input_is_refused_by_the_name_of_its_field(fields, location) -> None:
    tasks = {} if "tasks" in fields else {"prompt": "wash a cup"}
    with pytest.raises(ValidationError) as caught:
        TimingInput.model_validate({"images": _frames(0, 1), **tasks, **fields})
    assert caught.value.errors()[0]["loc"] == location


def test_a_task_is_needed() -> None:
    with pytest.raises(ValidationError, match="prompt: either it or tasks is needed"):
        TimingInput.model_validate({"images": _frames(0)})
