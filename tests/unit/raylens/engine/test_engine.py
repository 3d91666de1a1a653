from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raylens.core.errors import DeadlineExceeded, InvalidRequest, ModelFailed
from raylens.core.fairness import JOB_RANK_DELAY_S
from raylens.core.types import Chat, EngineTimings, FinishReason, Priority, Tool, Tools, Usage
from raylens.engine.engine import Engine, StepOutput
from raylens.engine.grammar import AnswerFormat
from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import ModelOutput, PictureInput, Prompt
from raylens.engine.sequence import GenerationSequence, SequenceState, make_sequences
from raylens.engine.structured import GrammarCompiler
from raylens.engine.transfer import Download
from tests.unit.raylens.engine.fakes import (
    BREAKS_DECODE,
    BREAKS_PREFILL,
    EOS,
    GIVES_NAN,
    FakeModel,
    answer,
    compile_schema,
    request,
)

LATER = math.inf
NEVER = frozenset({300})
"""An EOS id that the fake model never generates."""


MakeEngine = Callable[..., Engine]
MODES: dict[str, dict[str, Any]] = {
    "one by one": {},
    "async scheduling": {"async_scheduling": True, "max_prefill_batch_size": 8},
    "late first tokens": {"async_scheduling": True, "max_prefill_batch_size": 8},
}


class LateDownload(Download):
    """A download that is complete only after ``wait``."""

    is_ready = False


@pytest.fixture(params=MODES)
def make_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    """Return a factory of engines with the settings of a CPU, or of a GPU.

    By default, a step prefills all waiting prompts, even on a slow machine, and each token is sent
    on its own.
    """
    defaults = {"max_prefill_slice_s": 60.0, "max_deltas_per_s": math.inf}
    mode = MODES[request.param]
    if "late" in request.param:
        monkeypatch.setattr("raylens.engine.sampling_runner.Download", LateDownload)

    def make(max_batch_size: int, model: FakeModel | None = None, **limits: Any) -> Engine:
        return Engine(
            model or FakeModel(),
            EngineLimits(max_batch_size, **{**defaults, **mode, **limits}),
        )

    return make


def submit(
    engine: Engine,
    prompt: list[int],
    deadline: float = LATER,
    pictures: dict[int, bytes] | None = None,
    **sampling,
) -> list[GenerationSequence]:
    """Add the sequences of a request. ``pictures``: data by index of the first image token."""
    pictures = pictures or {}
    inputs = tuple(
        PictureInput(hashlib.sha256(data).digest(), len(data), data) for data in pictures.values()
    )
    submitted = make_sequences(
        request(deadline, **sampling),
        Prompt(tuple(prompt), inputs, tuple(pictures)),
        engine.model.tokenizer,
    )
    engine.scheduler.add(submitted)
    return submitted


def run(engine: Engine) -> list[StepOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def texts(outputs: list[StepOutput]) -> dict[GenerationSequence, str]:
    """Return the text of each sequence. An error is the name of its class, in brackets."""
    joined: dict[GenerationSequence, str] = defaultdict(str)
    for output in outputs:
        error = f"<{type(output.error).__name__}>"
        joined[output.sequence] += output.delta.text if output.delta else error
    return joined


def test_every_answer_is_the_same_as_alone_in_the_batch(make_engine: MakeEngine) -> None:
    rng = random.Random(1)
    engine = make_engine(5)
    expected = {}
    for _ in range(40):
        prompt = [rng.randrange(97, 120) for _ in range(rng.randint(1, 20))]
        length = rng.randint(1, 30)
        expected[submit(engine, prompt, max_tokens=length)[0]] = answer(prompt, length)
    assert texts(run(engine)) == expected


def test_each_answer_ends_once_with_its_reason_and_usage(make_engine: MakeEngine) -> None:
    engine = make_engine(8)
    for letter in range(97, 117):
        submit(engine, [letter], max_tokens=6)
    deltas = [output.delta for output in run(engine) if output.delta]
    last_deltas = [delta for delta in deltas if delta.finish_reason]
    assert len(last_deltas) == 20
    reasons = {delta.finish_reason for delta in last_deltas}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    for delta in last_deltas:
        assert delta.usage
        assert delta.usage.prompt_tokens == 1
        assert delta.usage.completion_tokens <= 6


def test_an_answer_tells_when_it_arrived_and_what_of_its_prompt_was_cached(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(4)
    cached = []
    for prompt in ([97] * 40, [*[97] * 40, 98, 99]):
        before = time.time()
        submit(engine, prompt, max_tokens=3)
        deltas = [output.delta for output in run(engine) if output.delta]
        timings = deltas[-1].timings
        assert isinstance(timings, EngineTimings)
        stages = timings.queue + timings.prefill + timings.decode
        assert before - 0.01 <= timings.arrived_at <= time.time() - stages + 0.01
        cached.append(timings.cached_tokens)
    assert cached == [0, 40]


def test_rows_leave_a_running_batch_as_they_finish(make_engine: MakeEngine) -> None:
    model = FakeModel()
    engine = make_engine(4, model)
    for length in (1, 2, 3, 5):
        submit(engine, [101], max_tokens=length)
    run(engine)
    assert sorted(model.decode_batches, reverse=True) == model.decode_batches
    assert model.decode_batches[0] > model.decode_batches[-1]


def test_an_answer_ends_at_the_model_s_max_length(make_engine: MakeEngine) -> None:
    engine = make_engine(1, FakeModel(max_length=10))
    sequence = submit(engine, [98] * 7, max_tokens=100)[0]
    run(engine)
    assert len(sequence.output_ids) <= 3


def test_answers_to_one_prompt_share_its_prefill(make_engine: MakeEngine) -> None:
    model = FakeModel()
    engine = make_engine(8, model)
    prompt = list(range(97, 117))
    answers = submit(engine, prompt, n=3, max_tokens=8)
    answer_texts = texts(run(engine))
    assert model.prefilled_tokens == 20 + 1 + 1
    assert {answer_texts[s] for s in answers} == {answer(prompt, 8)}
    assert [s.index for s in answers] == [0, 1, 2]


def test_interactive_requests_precede_jobs_and_run_in_order_of_arrival(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(1)
    job, first, second = (submit(engine, [letter], max_tokens=2)[0] for letter in (100, 101, 102))
    job.priority = Priority.JOB
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order == [first, second, job]


def test_a_job_that_has_waited_long_enough_precedes_new_requests(make_engine: MakeEngine) -> None:
    engine = make_engine(1)
    job, new = (submit(engine, [letter], max_tokens=2)[0] for letter in (100, 101))
    job.priority = Priority.JOB
    job.arrived_at -= JOB_RANK_DELAY_S + 1
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order == [job, new]


def test_running_sequences_decode_between_the_slices_of_a_new_one(make_engine: MakeEngine) -> None:
    model = FakeModel(max_length=512)
    model.eos_ids = NEVER
    engine = make_engine(2, model, max_prefill_slice_s=0.0, max_prefill_tokens=16)
    first = submit(engine, [99], max_tokens=100)[0]
    while not first.output_ids:
        engine.step()
    pictures = {10 * n: bytes([n + 65] * 5) for n in range(6)}
    new = submit(engine, [0] * 64, pictures=pictures, max_tokens=3)[0]
    steps = 0
    while new.state is not SequenceState.FINISHED:
        before = len(first.output_ids)
        engine.step()
        steps += 1
        assert len(first.output_ids) == before + 1
    assert steps >= 6 + 64 // 16
    rest = texts(run(engine))[first]
    assert rest == answer([99], 100, stops_at_eos=False)[-len(rest) :]


@pytest.mark.parametrize(("running", "slices"), [(1, 2), (2, 2), (3, 1)])
def test_few_sequences_wait_for_two_slices_and_many_for_one(
    make_engine: MakeEngine, running: int, slices: int
) -> None:
    model = FakeModel(max_length=512)
    model.eos_ids = NEVER
    engine = make_engine(
        8, model, max_prefill_slice_s=0.0, max_prefill_tokens=16, async_scheduling=False
    )
    submit(engine, [99], max_tokens=100, n=running)
    while len(engine.scheduler.running) < running:
        engine.step()
    submit(engine, list(range(1, 65)), max_tokens=3)
    before = model.prefilled_tokens
    engine.step()
    assert model.prefilled_tokens - before == slices * 16


def test_waiting_prompts_that_fit_in_one_chunk_are_prefilled_together() -> None:
    model = FakeModel()
    engine = Engine(
        model,
        EngineLimits(8, max_prefill_batch_size=3, max_prefill_tokens=20, max_prefill_slice_s=60.0),
    )
    lengths = (30, 10, 8, 4, 2, 2, 2, 2)
    submitted = [
        submit(engine, [97 + n] * length, max_tokens=5)[0] for n, length in enumerate(lengths)
    ]
    answer_texts = texts(run(engine))
    # 20 tokens of 30, then the other 10; 10 and 8; 4, 2 and 2; 2 and 2.
    assert model.prefill_batches == [1, 1, 2, 3, 2]
    assert answer_texts == {s: answer(s.prompt.token_ids, 5) for s in submitted}


def test_answers_to_one_prompt_are_not_prefilled_together() -> None:
    model = FakeModel()
    engine = Engine(
        model,
        EngineLimits(8, max_prefill_batch_size=8, max_prefill_tokens=200, async_scheduling=True),
    )
    submit(engine, list(range(97, 117)), n=3, max_tokens=8)
    run(engine)
    assert model.prefilled_tokens == 20 + 1 + 1


def test_async_scheduling_launches_a_step_before_it_processes_the_previous_tokens() -> None:
    model = FakeModel()
    model.eos_ids = NEVER
    engine = Engine(model, EngineLimits(4, async_scheduling=True))
    (sequence,) = submit(engine, [99], max_tokens=6)
    progress = []
    while engine.has_work:
        engine.step()
        progress.append((len(model.decode_batches), len(sequence.output_ids)))
    assert progress == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (5, 6)]


def test_decoded_tokens_do_not_wait_for_a_prefill_that_was_launched_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FakeModel()
    model.eos_ids = NEVER
    engine = Engine(model, EngineLimits(4, async_scheduling=True))
    (first,) = submit(engine, [99], max_tokens=20)
    for _ in range(4):
        engine.step()
    monkeypatch.setattr("raylens.engine.sampling_runner.Download", LateDownload)
    (second,) = submit(engine, [101], max_tokens=20)
    progress = []
    for _ in range(4):
        engine.step()
        progress.append((len(first.output_ids), len(second.output_ids)))
    assert progress == [(4, 0), (5, 0), (6, 2), (7, 3)]
    run(engine)
    assert first.output_ids == [ord(letter) for letter in answer([99], 20, stops_at_eos=False)]
    assert second.output_ids == [ord(letter) for letter in answer([101], 20, stops_at_eos=False)]


class StepMetrics(EngineMetrics):
    """Records the batch size of each step."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def record_step(self, batch_size: int, seconds: float | None) -> None:
        self.batch_sizes.append(batch_size)


def test_a_wasted_row_is_not_measured_and_leaves_nothing_pending() -> None:
    """With async scheduling, an answer that ends with EOS costs one wasted row in a step."""
    metrics = StepMetrics()
    engine = Engine(FakeModel(), EngineLimits(4, async_scheduling=True), metrics)
    submitted = [submit(engine, [letter], max_tokens=40)[0] for letter in (100, 107, 122)]
    run(engine)
    assert all(sequence.output_ids[-1] == EOS for sequence in submitted)
    assert sum(metrics.batch_sizes) == sum(len(sequence.output_ids) - 1 for sequence in submitted)
    assert engine._pending == []


@pytest.mark.parametrize("small", [True, False])
def test_random_arrivals_and_aborts_change_no_answer(make_engine: MakeEngine, small: bool) -> None:
    rng = random.Random(7)
    limits = {"kv_bytes": 6 * 128 * 8, "prefix_bytes": 400, "feature_bytes": 30} if small else {}
    engine = make_engine(
        6, FakeModel(max_length=512), max_prefill_slice_s=0.0, max_prefill_tokens=16, **limits
    )
    submitted: dict[GenerationSequence, tuple[list[int], int]] = {}
    """The arguments of ``answer`` for each sequence."""
    outputs = []
    shared = [rng.randrange(97, 120) for _ in range(40)]
    for _ in range(150):
        for _ in range(rng.choice((0, 0, 1, 3))):
            prompt = shared[: rng.randint(0, 40)] + [
                rng.randrange(97, 120) for _ in range(rng.randint(1, 30))
            ]
            picture = bytes(rng.choices(range(97, 105), k=4))
            length = rng.randint(1, 40)
            index = rng.randrange(len(prompt))
            has_picture = index + 4 <= len(prompt) and rng.random() < 0.6
            pictures = {index: picture} if has_picture else {}
            sequence = submit(engine, prompt, pictures=pictures, max_tokens=length)[0]
            if has_picture:
                prompt = prompt[:index] + list(picture) + prompt[index + 4 :]
            submitted[sequence] = prompt, length
        outputs += engine.step()
        if rng.random() < 0.15 and engine.scheduler.has_work:
            scheduler = engine.scheduler
            unfinished = [*scheduler.waiting, *scheduler.prefilling, *scheduler.running]
            rng.choice(unfinished).aborted = True
    outputs += run(engine)
    answer_texts = texts(outputs)
    complete = {s: answer_texts[s] for s in submitted if not s.aborted}
    assert len(complete) > 100
    assert complete == {s: answer(*submitted[s]) for s in complete}
    assert all(answer(*submitted[s]).startswith(answer_texts[s]) for s in submitted)
    assert engine.kv_cache.used_bytes == 0
    assert engine.kv_cache.allocated_bytes <= engine.kv_cache.budget
    assert engine.gauges.feature_bytes <= engine.limits.feature_bytes


def test_a_sequence_waits_for_room_in_the_cache(make_engine: MakeEngine) -> None:
    engine = make_engine(8, kv_bytes=2 * 128 * 8)
    engine.model.eos_ids = NEVER
    submitted = [submit(engine, [letter], max_tokens=20)[0] for letter in (100, 102, 104)]
    outputs = engine.step()
    assert engine.gauges.running == 2
    assert engine.gauges.waiting == 1
    answer_texts = texts(outputs + run(engine))
    assert answer_texts == {
        s: answer(s.prompt.token_ids, 20, stops_at_eos=False) for s in submitted
    }


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine(8, FakeModel(max_length=10_000), kv_bytes=4096)
    with pytest.raises(
        InvalidRequest, match=r"messages: 300 prompt tokens .* and 300 answer tokens .* 0\.0 MiB"
    ) as caught:
        engine.check_fit(Prompt((97,) * 300), 300, "messages")
    assert (caught.value.limit, caught.value.actual) == (4096, 8 * 1024)
    engine.check_fit(Prompt((97,) * 300), 200, "messages")


def test_a_small_request_does_not_overtake_a_waiting_large_one(make_engine: MakeEngine) -> None:
    engine = make_engine(8, FakeModel(max_length=512), kv_bytes=(256 + 128) * 8)
    submit(engine, [100], max_tokens=100)
    submit(engine, [101], max_tokens=100)
    large = submit(engine, [102], max_tokens=200)[0]
    small = submit(engine, [103], max_tokens=2)[0]
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order.index(large) < order.index(small)


def test_a_second_question_about_a_picture_neither_encodes_nor_prefills_it_again(
    make_engine: MakeEngine,
) -> None:
    model = FakeModel(max_length=512)
    engine = make_engine(2, model)
    picture = {3: bytes(range(65, 95))}
    submit(engine, [97] * 40 + [98] * 4, pictures=picture, max_tokens=2)
    run(engine)
    assert (model.encoded_pictures, model.prefilled_tokens) == (1, 44)
    prompt = [97] * 40 + [99] * 6
    second = submit(engine, prompt, pictures=picture, max_tokens=9)[0]
    answer_texts = texts(run(engine))
    assert (model.encoded_pictures, model.prefilled_tokens) == (1, 44 + 6)
    prompt = prompt[:3] + list(range(65, 95)) + prompt[33:]
    assert answer_texts[second] == answer(prompt, 9)


def test_a_different_picture_at_the_same_index_is_prefilled(make_engine: MakeEngine) -> None:
    model = FakeModel(max_length=512)
    engine = make_engine(2, model)
    for number in range(2):
        pictures = {3: bytes(range(65 + number, 95 + number))}
        sequence = submit(engine, [97] * 40, pictures=pictures, max_tokens=9)[0]
        prompt = [97] * 3 + list(pictures[3]) + [97] * 7
        assert texts(run(engine))[sequence] == answer(prompt, 9)
    assert model.encoded_pictures == 2


def test_logprobs_come_with_every_token_and_stay_with_their_row(make_engine: MakeEngine) -> None:
    engine = make_engine(4)
    without_logprobs = submit(engine, [100], max_tokens=5)[0]
    with_logprobs = submit(engine, [101], max_tokens=5, logprobs=2)[0]
    outputs = run(engine)
    logprobs = [
        logprob
        for output in outputs
        if output.sequence is with_logprobs and output.delta
        for logprob in output.delta.logprobs
    ]
    assert "".join(logprob.text for logprob in logprobs) == answer([101], 5)
    for logprob in logprobs:
        assert len(logprob.top) == 2
        assert logprob.top[0].data == logprob.data
    for output in outputs:
        if output.sequence is without_logprobs and output.delta:
            assert not output.delta.logprobs


@pytest.mark.parametrize(
    ("max_tokens", "length"), [(8, 3), (5, 5)], ids=["stop string", "max_tokens"]
)
def test_logprobs_are_held_back_and_dropped_with_the_text_of_a_stop_string(
    make_engine: MakeEngine, max_tokens: int, length: int
) -> None:
    text = answer([101], 8, stops_at_eos=False)
    engine = make_engine(4)
    engine.model.eos_ids = NEVER
    submit(engine, [101], max_tokens=max_tokens, logprobs=1, stop=(text[3:6],))
    deltas = [output.delta for output in run(engine) if output.delta]
    assert "".join(delta.text for delta in deltas) == text[:length]
    assert all("".join(token.text for token in delta.logprobs) == delta.text for delta in deltas)


def test_an_answer_without_streaming_is_one_complete_delta(make_engine: MakeEngine) -> None:
    engine = make_engine(4)
    streamed = submit(engine, [100], max_tokens=5, logprobs=1)[0]
    not_streamed = submit(engine, [100], max_tokens=5, logprobs=1)[0]
    not_streamed.stream = False
    outputs = run(engine)
    deltas = [o.delta for o in outputs if o.sequence is streamed and o.delta]
    (joined,) = (o.delta for o in outputs if o.sequence is not_streamed)
    assert joined is not None
    assert len(deltas) > 1
    assert joined.text == "".join(delta.text for delta in deltas) == answer([100], 5)
    assert joined.logprobs == tuple(token for delta in deltas for token in delta.logprobs)
    assert (joined.finish_reason, joined.usage) == (deltas[-1].finish_reason, deltas[-1].usage)


@pytest.mark.parametrize(
    ("streams", "steps"),
    [
        pytest.param(1, 4, id="one stream: 1/64 s"),
        pytest.param(4, 16, id="four streams: 4/64 s"),
        pytest.param(50, 51, id="many streams: 1/5 s"),
    ],
)
def test_streams_share_a_limited_number_of_deltas_per_second(
    make_engine: MakeEngine, streams: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("raylens.engine.engine.time.monotonic", lambda: clock)
    engine = make_engine(streams, FakeModel(max_length=512), max_deltas_per_s=64)
    engine.model.eos_ids = NEVER
    sequences = [submit(engine, [100 + number], max_tokens=240)[0] for number in range(streams)]
    sent: dict[GenerationSequence, list[float]] = defaultdict(list)
    joined: dict[GenerationSequence, str] = defaultdict(str)
    while engine.has_work:
        for output in engine.step():
            assert output.delta is not None
            sent[output.sequence].append(clock)
            joined[output.sequence] += output.delta.text
        clock += 1 / 256
    for number, sequence in enumerate(sequences):
        # Not the first one, and not the last ones, by which other streams have ended.
        gaps = 256 * np.diff(sent[sequence])[1:-2]
        assert gaps.size
        assert np.allclose(gaps, steps, atol=1), gaps
        assert joined[sequence] == answer([100 + number], 240, stops_at_eos=False)


def test_what_a_stream_holds_back_is_sent_before_an_error(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylens.engine.engine.time.monotonic", lambda: 0.0)  # nothing gets due
    engine = make_engine(2, max_deltas_per_s=1)
    engine.model.eos_ids = NEVER
    streamed, joined = (submit(engine, [100 + number], max_tokens=50)[0] for number in range(2))
    joined.stream = False
    outputs = [output for _ in range(9) for output in engine.step()]
    assert [output.sequence for output in outputs] == [streamed]
    streamed.deadline = joined.deadline = time.time() - 1
    outputs += run(engine)
    text = texts(outputs)
    num_tokens = len(streamed.output_ids)
    assert num_tokens > 5
    answered = answer([100], num_tokens, stops_at_eos=False)
    assert text[streamed] == f"{answered}<DeadlineExceeded>"
    assert text[joined] == "<DeadlineExceeded>"


def test_a_schema_is_followed_in_a_batch_with_an_unconstrained_answer(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(4, FakeModel(max_length=256))
    model = engine.model
    compiler = GrammarCompiler(model.tokenizer, model.eos_ids, model.vocab_size)
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    unconstrained = submit(engine, [100], max_tokens=30)[0]
    (constrained,) = make_sequences(
        request(LATER, max_tokens=200),
        Prompt((101,)),
        model.tokenizer,
        compile_schema(compiler, json.dumps(schema)),
    )
    engine.scheduler.add([constrained])
    answer_texts = texts(run(engine))
    assert json.loads(answer_texts[constrained])["a"] in (1, 2)
    assert answer_texts[unconstrained] == answer([100], 30)


def test_every_answer_is_measured_until_its_end() -> None:
    class RecordedMetrics(EngineMetrics):
        def __init__(self) -> None:
            self.first_tokens = 0
            self.reasons: list[str] = []
            self.batch_sizes: list[int] = []
            self.stages: list[str] = []

        def record_first_token(self, seconds: float) -> None:
            assert seconds >= 0
            self.first_tokens += 1

        def record_stage(self, stage: str, seconds: float) -> None:
            assert seconds >= 0
            self.stages.append(stage)

        def record_step(self, batch_size: int, seconds: float | None) -> None:
            self.batch_sizes.append(batch_size)

        def record_end(self, reason: str, usage: Usage, index: int) -> None:
            self.reasons.append(reason)

    metrics = RecordedMetrics()
    engine = Engine(FakeModel(), EngineLimits(max_batch_size=4, max_prefill_slice_s=60), metrics)
    engine.model.eos_ids = NEVER
    for letter in (100, 101, BREAKS_PREFILL):
        submit(engine, [letter], max_tokens=4)
    aborted = submit(engine, [102], max_tokens=40)[0]
    submit(engine, [103], deadline=time.time() - 1)
    engine.step()
    engine.step()
    aborted.aborted = True
    run(engine)
    assert sorted(metrics.reasons) == ["abort", "deadline", "error", "length", "length"]
    assert metrics.first_tokens == 3
    assert Counter(metrics.stages) == {"queue": 3, "prefill": 3, "decode": 2}
    assert max(metrics.batch_sizes) == 3


def test_a_request_that_breaks_prefill_fails_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(8)
    others = [submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101, 102)]
    failing = submit(engine, [BREAKS_PREFILL])[0]
    outputs = run(engine)
    answer_texts = texts(outputs)
    assert answer_texts.pop(failing) == "<ModelFailed>"
    assert answer_texts == {s: answer(s.prompt.token_ids, 8) for s in others}
    error = next(output.error for output in outputs if output.error)
    assert isinstance(error, ModelFailed)
    assert "RuntimeError" in error.message


def test_a_row_with_non_finite_logits_fails_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(8)
    others = [submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101)]
    failing = submit(engine, [GIVES_NAN])[0]
    answer_texts = texts(run(engine))
    assert answer_texts.pop(failing) == "<ModelFailed>"
    assert answer_texts == {s: answer(s.prompt.token_ids, 8) for s in others}


def test_a_request_that_breaks_decode_fails_alone_and_the_others_are_complete(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(8)
    others = [submit(engine, [letter], max_tokens=12)[0] for letter in (100, 103, 104)]
    failing = submit(engine, [BREAKS_DECODE, 98], max_tokens=12)[0]
    answer_texts = texts(run(engine))
    assert answer_texts.pop(failing).endswith("<ModelFailed>")
    assert answer_texts == {s: answer(s.prompt.token_ids, 12) for s in others}


def test_a_deadline_ends_waiting_and_running_sequences(make_engine: MakeEngine) -> None:
    engine = make_engine(1, FakeModel(max_length=10**6))
    running = submit(engine, [99], deadline=time.time() + 0.2, max_tokens=10**6, stop=("never",))[0]
    engine.model.eos_ids = NEVER
    waiting = submit(engine, [100], deadline=time.time() + 0.1, max_tokens=5)[0]
    errors = {output.sequence: output.error for output in run(engine) if output.error}
    assert set(errors) == {running, waiting}
    assert all(isinstance(error, DeadlineExceeded) for error in errors.values())


def test_an_aborted_sequence_is_removed_by_the_next_step(make_engine: MakeEngine) -> None:
    engine = make_engine(4)
    engine.model.eos_ids = NEVER
    running, aborted = (submit(engine, [letter], max_tokens=20)[0] for letter in (100, 101))
    waiting = [submit(engine, [102], max_tokens=20)[0] for _ in range(5)][-1]
    engine.step()
    aborted.aborted = waiting.aborted = True
    outputs = engine.step()
    assert aborted not in {output.sequence for output in outputs}
    assert aborted not in engine.scheduler.running
    assert waiting not in engine.scheduler.waiting
    assert running in engine.scheduler.running


def test_the_row_of_a_failed_sequence_is_zeroed(make_engine: MakeEngine) -> None:
    engine = make_engine(4)
    submit(engine, [GIVES_NAN, 100, 101])
    run(engine)
    assert engine.kv_cache.reserve("next", 10)  # type: ignore[arg-type]
    assert not any(layer.any() for layer in engine.kv_cache.row_of("next").layer_kv)  # type: ignore[arg-type]


def test_the_row_of_a_sequence_aborted_in_prefill_is_zeroed(make_engine: MakeEngine) -> None:
    engine = make_engine(4, max_prefill_slice_s=0.0, max_prefill_tokens=16)
    prefilling = submit(engine, list(range(1, 100)))[0]
    engine.step()
    assert any(layer.any() for layer in engine.kv_cache.row_of(prefilling).layer_kv)
    prefilling.aborted = True
    engine.step()
    assert engine.kv_cache.reserve("next", 99)  # type: ignore[arg-type]
    assert not any(layer.any() for layer in engine.kv_cache.row_of("next").layer_kv)  # type: ignore[arg-type]


@pytest.mark.parametrize("failures", [1, 2])
def test_without_memory_for_a_row_the_caches_are_emptied_and_then_the_request_fails(
    make_engine: MakeEngine, failures: int
) -> None:
    class OutOfMemoryCache(KVCache[GenerationSequence]):
        remaining_failures = failures

        def reserve(self, owner: GenerationSequence, tokens: int) -> bool:
            if owner.prompt.token_ids[0] == 105 and self.remaining_failures:
                self.remaining_failures -= 1
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().reserve(owner, tokens)

    engine = make_engine(4)
    engine.kv_cache.__class__ = OutOfMemoryCache
    submit(engine, [97] * 40, max_tokens=2)
    run(engine)
    assert engine.gauges.prefix_bytes
    failing, other = (submit(engine, [letter], max_tokens=8)[0] for letter in (105, 106))
    answer_texts = texts(run(engine))
    assert answer_texts[other] == answer([106], 8)
    assert answer_texts[failing] == (answer([105], 8) if failures == 1 else "<ModelFailed>")
    assert not engine.gauges.prefix_bytes


def test_a_lost_device_ends_the_engine(make_engine: MakeEngine) -> None:
    class ModelOnLostDevice(FakeModel):
        def decode(self, *arguments: object) -> ModelOutput:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    engine = make_engine(4, ModelOnLostDevice())
    engine.model.eos_ids = NEVER
    submit(engine, [100], max_tokens=8)
    with pytest.raises(torch.AcceleratorError):
        run(engine)


def test_a_detokenizer_that_fails_ends_only_its_own_answer(make_engine: MakeEngine) -> None:
    engine = make_engine(4)
    engine.model.eos_ids = NEVER
    failing, other = (submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101))
    failing.detokenizer.push = None  # type: ignore[assignment]
    answer_texts = texts(run(engine))
    assert answer_texts == {
        failing: "<ModelFailed>",
        other: answer([101], 8, stops_at_eos=False),
    }


def test_prompts_with_non_finite_logits_are_not_cached(make_engine: MakeEngine) -> None:
    model = FakeModel()
    engine = make_engine(4, model)
    for _ in range(2):
        submit(engine, [GIVES_NAN, *range(97, 127)], pictures={5: b"cat"})
        run(engine)
    assert model.encoded_pictures == 2
    assert engine.gauges.prefix_bytes == engine.gauges.feature_bytes == 0


def test_an_answer_is_not_shorter_than_its_minimum(make_engine: MakeEngine) -> None:
    engine = make_engine(4)
    for minimum in (0, 1, 7, 20):
        (sequence,) = make_sequences(
            request(LATER, max_tokens=30, min_tokens=minimum),
            Prompt((104,)),
            engine.model.tokenizer,
            eos_ids=engine.model.eos_ids,
        )
        engine.scheduler.add([sequence])
        run(engine)
        assert EOS not in sequence.output_ids[:minimum]
        assert sequence.usage.completion_tokens >= minimum
        assert len(answer([104], 30)) < 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_of_the_minimum_follows_its_grammar(
    make_engine: MakeEngine, temperature: float
) -> None:
    """The only token that may come first is one that would end the answer."""
    engine = make_engine(4)
    params = {"min_tokens": 3, "stop_token_ids": (ord("{"),), "temperature": temperature}
    compiler = GrammarCompiler(engine.model.tokenizer, engine.model.eos_ids, 257)
    schema = '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}'
    (sequence,) = make_sequences(
        request(LATER, max_tokens=30, **params),
        Prompt((104,)),
        engine.model.tokenizer,
        compile_schema(compiler, schema),
        engine.model.eos_ids,
    )
    engine.scheduler.add([sequence])
    assert texts(run(engine))[sequence].startswith("{")


def test_a_stop_string_before_the_minimum_is_text(make_engine: MakeEngine) -> None:
    engine = make_engine(4, FakeModel(eos_ids=NEVER))
    text = answer([104], 30, stops_at_eos=False)
    (plain,) = submit(engine, [104], max_tokens=20, stop=(text[3],))
    (late,) = submit(engine, [104], max_tokens=20, stop=(text[3],), min_tokens=10)
    answers = texts(run(engine))
    assert answers[plain] == text[: text.index(text[3])]
    assert len(answers[late]) >= 10
    assert text.startswith(answers[late])


def test_a_stop_token_ends_the_answer_and_is_part_of_it(make_engine: MakeEngine) -> None:
    engine = make_engine(4, FakeModel(eos_ids=NEVER))
    text = answer([104], 30, stops_at_eos=False)
    (sequence,) = submit(engine, [104], max_tokens=20, stop_token_ids=(ord(text[4]),))
    assert texts(run(engine))[sequence] == text[: text.index(text[4]) + 1]
    assert sequence.finish_reason is FinishReason.STOP


def test_a_bias_changes_the_most_likely_token(make_engine: MakeEngine) -> None:
    engine = make_engine(4, FakeModel(eos_ids=NEVER))
    (liked,) = submit(engine, [104], max_tokens=5, logit_bias=((ord("!"), 6.0),))
    (disliked,) = submit(engine, [104], max_tokens=1, logit_bias=((ord(answer([104], 1)), -9.0),))
    answers = texts(run(engine))
    assert answers[liked] == "!!!!!"
    assert answers[disliked] != answer([104], 1)


def test_calls_of_tools_are_apart_from_the_text(make_engine: MakeEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    tools = Tools((Tool("look", json.dumps(schema), "{}"),), ("look",))
    engine = make_engine(4, FakeModel(max_length=512))
    model = engine.model
    compiler = GrammarCompiler(model.tokenizer, model.eos_ids, model.vocab_size)
    for stream in (True, False):
        vision_request = replace(
            request(LATER, max_tokens=200), task=Chat((), tools=tools), stream=stream
        )
        grammar = compiler.compile(AnswerFormat(None, tools)).state
        (sequence,) = make_sequences(vision_request, Prompt((101,)), model.tokenizer, grammar)
        engine.scheduler.add([sequence])
        deltas = [output.delta for output in run(engine) if output.delta is not None]
        assert "".join(delta.text for delta in deltas) == ""
        calls = [call for delta in deltas for call in delta.tool_calls]
        assert calls[0].name == "look"
        assert json.loads("".join(call.arguments for call in calls))["a"] in (True, False)
        assert deltas[-1].finish_reason is FinishReason.TOOL_CALLS


class TestMemory:
    """Answers whose memory grows as they do. A row of 128 tokens takes 1 KiB."""

    def engine(self, make_engine: MakeEngine, rows: int) -> Engine:
        model = FakeModel(max_length=400, eos_ids=NEVER)
        return make_engine(8, model, kv_bytes=rows * 1024)

    def submit(self, engine: Engine, letter: int, guaranteed: int | None) -> GenerationSequence:
        (sequence,) = submit(engine, [letter], max_tokens=390, guaranteed_tokens=guaranteed)
        return sequence

    def test_an_answer_gets_what_is_left(self, make_engine: MakeEngine) -> None:
        engine = self.engine(make_engine, 8)
        sequences = [self.submit(engine, letter, 100) for letter in (100, 101)]
        answers = texts(run(engine))
        for sequence in sequences:
            expected = answer(sequence.prompt.token_ids, 390, stops_at_eos=False)
            assert answers[sequence] == expected
            assert sequence.finish_reason is FinishReason.LENGTH
        assert engine.kv_cache.used_bytes == 0

    def test_what_is_guaranteed_is_all_that_it_takes_at_first(self, make_engine) -> None:
        engine = self.engine(make_engine, 4)
        sequences = [self.submit(engine, letter, 100) for letter in (100, 101, 102, 103)]
        engine.step()
        assert {sequence.state for sequence in sequences} == {SequenceState.RUNNING}

    def test_if_memory_is_short_the_oldest_answers_go_on(self, make_engine: MakeEngine) -> None:
        engine = self.engine(make_engine, 8)
        sequences = [self.submit(engine, letter, 100) for letter in range(100, 106)]
        late = self.submit(engine, 106, 100)
        answers = texts(run(engine))
        lengths = [len(sequence.output_ids) for sequence in sequences]
        for sequence in (*sequences, late):
            expected = answer(sequence.prompt.token_ids, 390, stops_at_eos=False)
            assert expected.startswith(answers[sequence])
            assert sequence.finish_reason is FinishReason.LENGTH
        assert min(lengths) >= 100
        assert lengths[0] == 390
        assert engine.kv_cache.used_bytes == 0

    def test_an_answer_that_needs_more_than_the_cache_is_cut(self, make_engine) -> None:
        engine = self.engine(make_engine, 2)
        vision_request = request(LATER, max_tokens=390)
        fitted = engine.fit_to_memory(vision_request, Prompt((100,) * 56))
        assert fitted.sampling.max_tokens == 200
        with pytest.raises(InvalidRequest, match="300 prompt tokens"):
            engine.fit_to_memory(vision_request, Prompt((100,) * 300))
