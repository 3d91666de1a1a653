from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from pydantic import ValidationError

from raylens.core.config import AppConfig, JobsConfig
from raylens.core.errors import (
    InvalidRequest,
    ModelFailed,
    Overloaded,
    RaylensError,
    UnsupportedMedia,
)
from raylens.core.ports import VisionService
from raylens.core.recipe import Recipe
from raylens.core.types import (
    Caller,
    Caption,
    Delta,
    FinishReason,
    MediaFile,
    ModelInfo,
    PictureFile,
    ProcessedPicture,
    Query,
    VisionRequest,
)
from raylens.jobs.blobs import BlobMissing, BlobStorage
from raylens.jobs.inference import InferenceClient
from raylens.jobs.job import Job, Progress
from raylens.jobs.job_files import JobFiles
from raylens.jobs.llm import LanguageModel
from raylens.jobs.progress import Reporter
from raylens.jobs.types.base import JobContext
from raylens.jobs.types.timing import (
    ANSWER_TOKENS,
    TaskTimingJob,
    TimingInput,
    make_question,
)
from testing.virtual_time import VirtualClock

Reply = Callable[[str, VisionRequest], str | RaylensError]
"""Returns the answer to a request, or the error to raise, by the name of the picture."""


def digest_of_name(name: str) -> str:
    return name.encode().hex().rjust(64, "0")


class FakeBlobs:
    """A picture's bytes are its name. The picture ``gone`` is missing."""

    async def get_async(self, digest: str) -> bytes:
        data = bytes.fromhex(digest).lstrip(b"\0")
        if data == b"gone":
            raise BlobMissing(digest)
        return data


class FakeService(VisionService):
    def __init__(self, reply: Reply, warnings: tuple[str, ...] = ()) -> None:
        self._reply = reply
        self._warnings = warnings
        self._running = 0
        self.most_at_once = 0
        self.requests: list[tuple[str, VisionRequest]] = []

    async def generate(
        self, request: VisionRequest, pictures: Sequence[MediaFile]
    ) -> AsyncGenerator[Delta, None]:
        name = pictures[0].data.decode()
        self.requests.append((name, request))
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        await asyncio.sleep(0.001)
        self._running -= 1
        reply = self._reply(name, request)
        if isinstance(reply, RaylensError):
            raise reply
        yield Delta(reply, finish_reason=FinishReason.STOP, warnings=self._warnings)

    async def preprocess(
        self, picture: PictureFile, recipe: Recipe, caller: Caller
    ) -> ProcessedPicture:
        raise NotImplementedError

    async def model_info(self, name: str) -> ModelInfo:
        raise NotImplementedError


class FakeLanguageModel(LanguageModel):
    def __init__(self, reply: Callable[[str], str | RaylensError]) -> None:
        self._reply = reply
        self.prompts: list[str] = []

    async def complete(self, prompt: str, deadline: float) -> str:
        self.prompts.append(prompt)
        reply = self._reply(prompt)
        if isinstance(reply, RaylensError):
            raise reply
        return reply


class ProcessDied(Exception):
    pass


@dataclass
class Reports(Reporter):
    """The progress reports of a job.

    Report number ``dies_after`` ends the attempt, as if its process died.
    """

    saved: list[tuple[Progress, dict[str, Any]]] = field(default_factory=list)
    dies_after: int | None = None

    async def report(
        self, progress: Progress, partial: dict[str, Any] | None, at_once: bool = False
    ) -> None:
        self.saved.append((progress, copy.deepcopy(partial or {})))
        if len(self.saved) == self.dies_after:
            raise ProcessDied

    async def deliver(self, *arguments: Any) -> None:
        raise AssertionError("it has no events")


JOB = Job("j1", "task_timing_v1", {}, 0.0, 1e12, max_attempts=5, rank=0.0, attempts=1)


def make_context(
    service: FakeService,
    llm: FakeLanguageModel | None = None,
    reports: Reports | None = None,
    job: Job = JOB,
) -> JobContext:
    config = AppConfig.model_validate({"models": [{"name": "moondream", "family": "moondream"}]})
    return JobContext(
        job,
        VirtualClock().monotonic() + 86_400,
        config.jobs,
        VirtualClock(),
        InferenceClient(service, config),
        cast(BlobStorage, FakeBlobs()),
        cast(JobFiles, None),
        llm,
        reports or Reports(),
    )


def make_input(names: str | Sequence[str], **fields: Any) -> TimingInput:
    """Return an input of one frame for each name, a second apart."""
    images = [
        {"image": f"blob:{digest_of_name(name)}", "timestamp": number}
        for number, name in enumerate(names)
    ]
    tasks = {} if "tasks" in fields else {"prompt": "wash a cup"}
    return TimingInput.model_validate({"images": images, **tasks, **fields})


def reply_by_name(name: str, request: VisionRequest) -> str | RaylensError:
    """Answer yes for the picture ``y``, no for ``n``, and neither for any other."""
    if isinstance(request.task, Caption):
        return f" a picture of {name}"
    return {"y": "Yes, they are.", "n": "no"}.get(name, "It is hard to say")


async def run(job_input: TimingInput, context: JobContext) -> dict[str, Any]:
    return await TaskTimingJob().run(job_input, context)


async def run_by_name(names: str | Sequence[str], **fields: Any) -> dict[str, Any]:
    return await run(make_input(names, **fields), make_context(FakeService(reply_by_name)))


def intervals_of(output: dict[str, Any], task_index: int = 0) -> list[tuple[Any, Any]]:
    return [
        (interval["start"], interval["end"])
        for interval in output["tasks"][task_index]["intervals"]
    ]


async def test_a_task_is_timed_from_yes_and_no() -> None:
    output = await run_by_name("nnyyynn")
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


async def test_each_frame_is_described_once_and_asked_about_each_task() -> None:
    service = FakeService(lambda name, request: "yes" if "Is it b?" in str(request.task) else "no")
    output = await run(make_input("abc", tasks=["a", "Is it b?"]), make_context(service))
    assert [task["task"] for task in output["tasks"]] == ["a", "Is it b?"]
    assert intervals_of(output, 0) == []
    assert intervals_of(output, 1) == [(0.0, 2.0)]
    tasks = [request.task for name, request in service.requests if name == "a"]
    assert [type(task) for task in tasks] == [Caption, Query, Query]
    assert output["summary"] == "a: not seen.\nIs it b?: from 0.0 to 2.0 (2 s)."


async def test_answers_are_greedy_and_short_whatever_the_settings() -> None:
    service = FakeService(reply_by_name)
    settings = {"temperature": 1.5, "max_tokens": 300}
    job_input = make_input("y", settings=settings, vlm_prompt="What do the hands do?")
    await run(job_input, make_context(service))
    description, answer = (request for _, request in service.requests)
    assert description.task == Query("What do the hands do?")
    assert description.sampling.temperature == answer.sampling.temperature == 0.0
    assert description.sampling.max_tokens == 300
    assert answer.sampling.max_tokens == ANSWER_TOKENS


async def test_the_requests_of_some_frames_run_together_and_each_frame_is_reported() -> None:
    service = FakeService(reply_by_name)
    reports = Reports()
    await run(make_input("nnyyyyynnnnn"), make_context(service, reports=reports))
    assert service.most_at_once == 10
    assert [progress for progress, _ in reports.saved] == [
        Progress(done, 12) for done in range(1, 13)
    ]


async def test_more_tasks_put_no_more_requests_in_flight() -> None:
    service = FakeService(reply_by_name)
    tasks = [f"task {number}" for number in range(16)]
    await run(make_input("nnyyy", tasks=tasks), make_context(service))
    assert (len(service.requests), service.most_at_once) == (5 * 17, 10)


async def test_frames_are_sorted_by_time() -> None:
    job_input = make_input("nyyn")
    job_input.images.reverse()
    output = await run(job_input, make_context(FakeService(reply_by_name)))
    assert [entry["timestamp"] for entry in output["evidence"]] == [0.0, 1.0, 2.0, 3.0]
    assert intervals_of(output) == [(0.5, 3.0)]


async def test_date_times_are_returned_in_utc() -> None:
    dated_pictures = [
        ("n", "2026-03-01T12:00:00+02:00"),
        ("y", "2026-03-01T10:00:01Z"),
        ("y", "2026-03-01T10:00:02"),
        ("n", "2026-03-01T10:00:03.5+00:00"),
        ("n", "2026-03-01T10:00:04Z"),
    ]
    images = [
        {"image": f"blob:{digest_of_name(name)}", "timestamp": date}
        for name, date in dated_pictures
    ]
    job_input = make_input("nyynn", images=images)
    output = await run(job_input, make_context(FakeService(reply_by_name)))
    start = "2026-03-01T10:00:00.500000+00:00"
    end = "2026-03-01T10:00:02.750000+00:00"
    assert output["tasks"][0]["intervals"] == [{"start": start, "end": end, "seconds": 2.25}]
    assert output["evidence"][0]["timestamp"] == "2026-03-01T10:00:00+00:00"


async def test_an_attempt_resumes_after_the_frames_of_the_last_one() -> None:
    reports = Reports(dies_after=5)
    job_input = make_input("nnyyyyynn")
    with pytest.raises(ProcessDied):
        await run(job_input, make_context(FakeService(reply_by_name), reports=reports))
    _, partial = reports.saved[-1]
    second = FakeService(reply_by_name)
    job = replace(JOB, output=partial, attempts=2)
    output = await run(job_input, make_context(second, job=job))
    names = [name for name, _ in second.requests]
    assert sorted(names) == ["n", "n", "n", "n", "y", "y", "y", "y"]
    assert output == await run(job_input, make_context(FakeService(reply_by_name)))


async def test_a_stored_input_equals_the_submitted_one() -> None:
    submitted = make_input("nyn", tasks=["a", "b"], enter=3)
    stored = submitted.model_dump(mode="json", exclude_unset=True)
    assert TimingInput.model_validate(stored) == submitted


async def test_a_frame_that_fails_is_unclear_and_the_others_count() -> None:
    def reply(name: str, request: VisionRequest) -> str | RaylensError:
        if name == "bad":
            field = "input.images.2.image"
            return UnsupportedMedia(f"{field}: not a picture", field)
        return reply_by_name(name, request)

    job_input = make_input(["y", "y", "bad", "gone", "n", "n"])
    output = await run(job_input, make_context(FakeService(reply)))
    bad, gone = output["evidence"][2:4]
    assert bad["description"] is None
    assert bad["answers"] == [None]
    assert bad["error"]["code"] == "unsupported_media"
    assert gone["answers"] == [None]
    assert gone["error"]["field"] == "input.images.3.image"
    assert intervals_of(output) == [(0.0, 3.5)]
    assert output["warnings"] == ["2 of 6 frames have an error"]


async def test_a_frame_that_lacks_capacity_is_left_for_the_next_attempt() -> None:
    def reply(name: str, request: VisionRequest) -> str | RaylensError:
        return Overloaded("the queue is full") if name == "late" else reply_by_name(name, request)

    reports = Reports()
    job_input = make_input(["y"] * 3 + ["late"] + ["y"] * 9)
    with pytest.raises(Overloaded):
        await run(job_input, make_context(FakeService(reply), reports=reports))
    progress, partial = reports.saved[-1]
    assert progress.done == 12
    assert [index for index, entry in enumerate(partial["evidence"]) if entry is None] == [3]
    service = FakeService(reply_by_name)
    job = replace(JOB, output=partial, progress=progress)
    output = await run(job_input, make_context(service, job=job))
    assert len(service.requests) == 2
    assert len(output["evidence"]) == 13


async def test_an_overloaded_model_is_asked_about_few_frames() -> None:
    service = FakeService(lambda name, request: Overloaded("the queue is full"))
    with pytest.raises(Overloaded):
        await run(make_input("y" * 100), make_context(service))
    assert len(service.requests) < 4 * JobsConfig().image_batch_size


async def test_a_frame_at_which_the_model_fails_is_retried_alone() -> None:
    failures: Counter[str] = Counter()

    def reply(name: str, request: VisionRequest) -> str | RaylensError:
        if isinstance(request.task, Query) and failures[name] < {"a": 2, "b": 99}.get(name, 0):
            failures[name] += 1
            return ModelFailed("it broke")
        return reply_by_name("y", request)

    reports = Reports()
    output = await run(make_input("cabd"), make_context(FakeService(reply), reports=reports))
    assert failures == {"a": 2, "b": 5}
    assert [entry["answers"] for entry in output["evidence"]] == [[True], [True], [None], [True]]
    failed = output["evidence"][2]
    assert failed["description"] == "a picture of y"  # the replies that came are kept
    assert failed["error"]["code"] == "model_failed"
    assert {"1", "2"} <= {unit for _, partial in reports.saved for unit in partial["attempts"]}


async def test_a_repeated_preprocessing_warning_is_reported_once() -> None:
    service = FakeService(reply_by_name, warnings=("decode: the file is damaged",))
    output = await run(make_input("nyynn"), make_context(service))
    assert output["warnings"] == ["decode: the file is damaged"]


async def test_the_llm_interprets_unclear_frames_and_writes_the_summary() -> None:
    def reply(prompt: str) -> str:
        is_description = "picture of u" in prompt and "by the description" in prompt
        return "YES." if is_description else "A cup!"

    llm = FakeLanguageModel(reply)
    output = await run(make_input("nyuun"), make_context(FakeService(reply_by_name), llm))
    answers = [entry["answers"] for entry in output["evidence"]]
    assert answers == [[False], [True], [True], [True], [False]]
    assert intervals_of(output) == [(0.5, 4.0)]
    assert output["summary"] == "A cup!"
    assert len(llm.prompts) == 3
    assert "wash a cup: from 0.5 to 4.0 (3.5 s)." in llm.prompts[-1]
    assert "2.0: a picture of u (yes)" in llm.prompts[-1]


async def test_an_llm_with_empty_answers_changes_nothing() -> None:
    llm = FakeLanguageModel(lambda _: " ")
    output = await run(make_input("nyyun"), make_context(FakeService(reply_by_name), llm))
    assert output == await run_by_name("nyyun")


async def test_the_llms_prompt_is_bounded() -> None:
    llm = FakeLanguageModel(lambda prompt: "fine")
    service = FakeService(lambda name, request: "long words " * 500)
    await run(make_input("a" * 200, prompt="p" * 4000), make_context(service, llm))
    assert max(len(prompt) for prompt in llm.prompts) < 7000
    assert llm.prompts[-1].count("long words") < 32 * 12
    assert "\n196.0: " in llm.prompts[-1]


async def test_an_llm_that_fails_for_good_is_not_asked_again_and_leaves_a_plain_summary() -> None:
    llm = FakeLanguageModel(lambda _: InvalidRequest("no such model"))
    output = await run(make_input("nuyyunnnnu"), make_context(FakeService(reply_by_name), llm))
    warning = "the language model failed: no such model; the rest of this attempt did without it"
    assert output["warnings"] == [warning]
    assert output["summary"] == "wash a cup: from 1.5 to 4.5 (3 s)."
    assert len(llm.prompts) <= 5


@pytest.mark.parametrize("error", [InvalidRequest("gone"), ModelFailed("gone")])
async def test_many_tasks_survive_an_llm_that_fails_for_good(error: RaylensError) -> None:
    llm = FakeLanguageModel(lambda _: error)
    tasks = [f"task {number}" for number in range(16)]
    job_input = make_input("uuuuuuuu", tasks=tasks)
    output = await run(job_input, make_context(FakeService(reply_by_name), llm))
    warning = "the language model failed: gone; the rest of this attempt did without it"
    assert output["warnings"] == [warning]
    assert {answer for entry in output["evidence"] for answer in entry["answers"]} == {None}


async def test_a_busy_llm_is_waited_for() -> None:
    llm = FakeLanguageModel(lambda _: Overloaded("busy"))
    reports = Reports()
    job_input = make_input("nyyu")
    with pytest.raises(Overloaded):
        await run(job_input, make_context(FakeService(reply_by_name), llm, reports))
    _, partial = reports.saved[-1]
    job = replace(JOB, attempts=5, output=partial)
    with pytest.raises(Overloaded):
        await run(job_input, make_context(FakeService(reply_by_name), llm, job=job))


async def test_a_summary_that_fails_is_retried_but_not_after_the_last_attempt() -> None:
    llm = FakeLanguageModel(lambda _: ModelFailed("broken"))
    job_input = make_input("nyyn")
    with pytest.raises(ModelFailed):
        await run(job_input, make_context(FakeService(reply_by_name), llm))
    job = replace(JOB, attempts=5)
    output = await run(job_input, make_context(FakeService(reply_by_name), llm, job=job))
    assert output["summary"] == "wash a cup: from 0.5 to 3.0 (2.5 s)."
    warning = "the language model failed: broken; the rest of this attempt did without it"
    assert output["warnings"] == [warning]


def test_a_question_stays_as_it_is_and_a_phrase_becomes_one() -> None:
    assert make_question("Is the {cup} clean? ") == "Is the {cup} clean? "
    question = "Task: wash {cups}\nIs somebody doing this task in the picture? Answer yes or no."
    assert make_question("wash {cups}") == question


def frames(*timestamps: Any) -> list[dict[str, Any]]:
    image = f"blob:{digest_of_name('y')}"
    return [{"image": image, "timestamp": timestamp} for timestamp in timestamps]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"images": frames(0, 1, 2, 1.0)}, ("images", 3, "timestamp")),
        (
            {"images": frames("2026-01-01T01:00:00+01:00", "2026-01-01")},
            ("images", 1, "timestamp"),
        ),
        ({"images": frames(0, "2026-01-01")}, ("images", 1, "timestamp")),
        ({"images": frames("2026-01-01", 0)}, ("images", 1, "timestamp")),
        ({"images": frames(float("nan"))}, ("images", 0, "timestamp")),
        ({"images": frames(0, float("inf"))}, ("images", 1, "timestamp")),
        ({"images": frames(10**400)}, ("images", 0, "timestamp")),
        ({"images": frames(True)}, ("images", 0, "timestamp")),
        ({"images": frames(None)}, ("images", 0, "timestamp")),
        ({"images": frames("soon")}, ("images", 0, "timestamp")),
        ({"images": frames("0001-01-01T00:00:00+10:00")}, ("images", 0, "timestamp")),
        ({"images": []}, ("images",)),
        ({"images": [{"image": "https://x.test/", "timestamp": 0}]}, ("images", 0, "image")),
        ({"images": [{**frames(0)[0], "time": 0}]}, ("images", 0, "time")),
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
def test_an_invalid_input_is_refused_with_the_fields_name(fields, location) -> None:
    tasks = {} if "tasks" in fields else {"prompt": "wash a cup"}
    with pytest.raises(ValidationError) as caught:
        TimingInput.model_validate({"images": frames(0, 1), **tasks, **fields})
    assert caught.value.errors()[0]["loc"] == location


def test_a_task_is_required() -> None:
    with pytest.raises(ValidationError, match="prompt: expected exactly one of prompt and tasks"):
        TimingInput.model_validate({"images": frames(0)})
