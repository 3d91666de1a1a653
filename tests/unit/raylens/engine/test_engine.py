from __future__ import annotations

import hashlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from raylens.core.errors import DeadlineExceeded, InvalidRequest, ModelFailed
from raylens.core.types import FinishReason, Priority, Usage
from raylens.engine.engine import Engine, StepOutput
from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import ModelOutput, PictureInput, Prompt
from raylens.engine.scheduler import JOB_PATIENCE_S
from raylens.engine.sequence import Sequence, State, sequences
from raylens.engine.structured import Grammars
from raylens.engine.transfer import Download
from tests.unit.raylens.engine.fakes import EOS, FakeModel, answer, request

LATER = time.time() + 3600
NEVER = frozenset({300})
"""An end that the fake model never says."""


Make = Callable[..., Engine]
MODES: dict[str, dict[str, Any]] = {
    "one after another": {},
    "together and ahead": {"look_ahead": True, "prefill_batch": 8},
    "and first tokens come late": {"look_ahead": True, "prefill_batch": 8},
}


class SlowFetch(Download):
    """Is never there by itself."""

    ready = False


@pytest.fixture(params=MODES)
def make_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Engines as they are on a CPU, and as they are on a GPU. By default a step reads all that
    enters, however slow the machine is."""
    mode = MODES[request.param]
    if "late" in request.param:
        monkeypatch.setattr("raylens.engine.next_tokens.Download", SlowFetch)

    def make(max_batch_size: int, model: FakeModel | None = None, **limits: Any) -> Engine:
        return Engine(
            model or FakeModel(),
            EngineLimits(max_batch_size, **{"max_prefill_slice_s": 60.0, **mode, **limits}),
        )

    return make


def submit(
    engine: Engine,
    prompt: list[int],
    deadline: float = LATER,
    pictures: dict[int, bytes] | None = None,
    **sampling,
) -> list[Sequence]:
    """``pictures``: what stands at a place of the prompt; their tokens there are 0."""
    shown = pictures or {}
    inputs = tuple(
        PictureInput(hashlib.sha256(data).digest(), len(data), data) for data in shown.values()
    )
    made = sequences(
        request(deadline, **sampling),
        Prompt(tuple(prompt), inputs, tuple(shown)),
        engine.model.tokenizer,
    )
    engine.scheduler.add(made)
    return made


def run(engine: Engine) -> list[StepOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def texts(outputs: list[StepOutput]) -> dict[Sequence, str]:
    joined: dict[Sequence, str] = defaultdict(str)
    for output in outputs:
        joined[output.sequence] += (
            output.delta.text if output.delta else f"<{type(output.error).__name__}>"
        )
    return joined


def test_every_answer_is_what_the_model_says_to_it_alone(make_engine: Make) -> None:
    rng = random.Random(1)
    engine = make_engine(5)
    wanted = {}
    for _ in range(40):
        prompt = [rng.randrange(97, 120) for _ in range(rng.randint(1, 20))]
        length = rng.randint(1, 30)
        wanted[submit(engine, prompt, max_tokens=length)[0]] = answer(prompt, length)
    assert texts(run(engine)) == wanted


def test_each_answer_ends_once_with_its_reason_and_usage(make_engine: Make) -> None:
    engine = make_engine(8)
    for letter in range(97, 117):
        submit(engine, [letter], max_tokens=6)
    ends = [output.delta for output in run(engine) if output.delta and output.delta.finish_reason]
    assert len(ends) == 20
    assert {end.finish_reason for end in ends} == {FinishReason.STOP, FinishReason.LENGTH}
    assert all(
        end.usage and end.usage.prompt_tokens == 1 and end.usage.completion_tokens <= 6
        for end in ends
    )


def test_rows_leave_a_running_batch_as_they_finish(make_engine: Make) -> None:
    model = FakeModel()
    engine = make_engine(4, model)
    for length in (1, 2, 3, 5):
        submit(engine, [101], max_tokens=length)
    run(engine)
    assert sorted(model.batches, reverse=True) == model.batches
    assert model.batches[0] > model.batches[-1]


def test_the_context_ends_an_answer(make_engine: Make) -> None:
    engine = make_engine(1, FakeModel(max_length=10))
    made = submit(engine, [98] * 7, max_tokens=100)[0]
    run(engine)
    assert len(made.output_ids) <= 3


def test_answers_to_one_prompt_share_its_prefill(make_engine: Make) -> None:
    model = FakeModel()
    engine = make_engine(8, model)
    prompt = list(range(97, 117))
    made = submit(engine, prompt, n=3, max_tokens=8)
    said = texts(run(engine))
    assert model.prefilled == 20 + 1 + 1
    assert {said[s] for s in made} == {answer(prompt, 8)}
    assert [s.index for s in made] == [0, 1, 2]


def test_interactive_requests_go_before_jobs_and_each_in_order_of_arrival(
    make_engine: Make,
) -> None:
    engine = make_engine(1)
    job, first, second = (submit(engine, [letter], max_tokens=2)[0] for letter in (100, 101, 102))
    job.priority = Priority.JOB
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order == [first, second, job]


def test_a_job_that_has_waited_long_enough_goes_before_newcomers(make_engine: Make) -> None:
    engine = make_engine(1)
    job, newcomer = (submit(engine, [letter], max_tokens=2)[0] for letter in (100, 101))
    job.priority = Priority.JOB
    job.arrived_at -= JOB_PATIENCE_S + 1
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order == [job, newcomer]


def test_a_newcomer_joins_and_the_others_go_on_between_its_slices(make_engine: Make) -> None:
    model = FakeModel(max_length=512)
    model.eos_ids = NEVER
    engine = make_engine(2, model, max_prefill_slice_s=0.0, prefill_tokens=16)
    first = submit(engine, [99], max_tokens=100)[0]
    while not first.output_ids:
        engine.step()
    newcomer = submit(
        engine, [0] * 64, pictures={10 * n: bytes([n + 65] * 5) for n in range(6)}, max_tokens=3
    )[0]
    steps = 0
    while newcomer.state is not State.FINISHED:
        before = len(first.output_ids)
        engine.step()
        steps += 1
        assert len(first.output_ids) == before + 1
    assert steps >= 6 + 64 // 16
    said = texts(run(engine))
    assert said[first] == answer([99], 100, end=False)[-len(said[first]) :]


@pytest.mark.parametrize(("running", "slices"), [(1, 2), (2, 2), (3, 1)])
def test_a_few_answers_wait_for_two_slices_and_many_for_one(
    make_engine: Make, running: int, slices: int
) -> None:
    model = FakeModel(max_length=512)
    model.eos_ids = NEVER
    engine = make_engine(8, model, max_prefill_slice_s=0.0, prefill_tokens=16, look_ahead=False)
    submit(engine, [99], max_tokens=100, n=running)
    while len(engine.scheduler.running) < running:
        engine.step()
    submit(engine, list(range(1, 65)), max_tokens=3)
    before = model.prefilled
    engine.step()
    assert model.prefilled - before == slices * 16


def test_prompts_that_wait_are_read_together_as_far_as_they_fit_into_a_slice() -> None:
    model = FakeModel()
    engine = Engine(
        model, EngineLimits(8, prefill_batch=3, prefill_tokens=20, max_prefill_slice_s=60.0)
    )
    lengths = (30, 10, 8, 4, 2, 2, 2, 2)
    wanted = [
        submit(engine, [97 + n] * length, max_tokens=5)[0] for n, length in enumerate(lengths)
    ]
    said = texts(run(engine))
    assert model.groups == [1, 1, 2, 3, 2]  # 20 of 30, the other 10; 10 and 8; 4, 2 and 2; 2 and 2
    assert said == {s: answer(s.prompt.token_ids, 5) for s in wanted}


def test_answers_to_one_prompt_are_not_read_together() -> None:
    model = FakeModel()
    engine = Engine(model, EngineLimits(8, prefill_batch=8, prefill_tokens=200, look_ahead=True))
    submit(engine, list(range(97, 117)), n=3, max_tokens=8)
    run(engine)
    assert model.prefilled == 20 + 1 + 1


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_looked_at() -> None:
    model = FakeModel()
    model.eos_ids = NEVER
    engine = Engine(model, EngineLimits(4, look_ahead=True))
    (sequence,) = submit(engine, [99], max_tokens=6)
    seen = []
    while engine.has_work:
        engine.step()
        seen.append((len(model.batches), len(sequence.output_ids)))
    assert seen == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (5, 6)]


def test_decoded_tokens_do_not_wait_for_a_prompt_that_was_launched_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FakeModel()
    model.eos_ids = NEVER
    engine = Engine(model, EngineLimits(4, look_ahead=True))
    (first,) = submit(engine, [99], max_tokens=20)
    for _ in range(4):
        engine.step()
    monkeypatch.setattr("raylens.engine.next_tokens.Download", SlowFetch)
    (second,) = submit(engine, [101], max_tokens=20)
    seen = []
    for _ in range(4):
        engine.step()
        seen.append((len(first.output_ids), len(second.output_ids)))
    assert seen == [(4, 0), (5, 0), (6, 2), (7, 3)]
    run(engine)
    assert first.output_ids == [ord(letter) for letter in answer([99], 20, end=False)]
    assert second.output_ids == [ord(letter) for letter in answer([101], 20, end=False)]


class Steps(EngineMetrics):
    """Notes the rows of each step."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def step(self, batch: int, seconds: float | None) -> None:
        self.rows.append(batch)


def test_a_step_that_was_launched_in_vain_is_not_measured_and_not_left_behind() -> None:
    """An answer that ends by a token has been decoded once too often."""
    steps = Steps()
    engine = Engine(FakeModel(), EngineLimits(4, look_ahead=True), steps)
    made = [submit(engine, [letter], max_tokens=40)[0] for letter in (100, 107, 122)]
    run(engine)
    assert all(sequence.output_ids[-1] == EOS for sequence in made)
    assert sum(steps.rows) == sum(len(sequence.output_ids) - 1 for sequence in made)
    assert engine._pending == []


@pytest.mark.parametrize("small", [True, False])
def test_random_joins_leaves_and_aborts_change_no_answer(make_engine: Make, small: bool) -> None:
    rng = random.Random(7)
    limits = {"kv_bytes": 6 * 128 * 8, "prefix_bytes": 400, "feature_bytes": 30} if small else {}
    engine = make_engine(
        6, FakeModel(max_length=512), max_prefill_slice_s=0.0, prefill_tokens=16, **limits
    )
    made: dict[Sequence, tuple[list[int], int]] = {}
    outputs = []
    shared = [rng.randrange(97, 120) for _ in range(40)]
    for _ in range(150):
        for _ in range(rng.choice((0, 0, 1, 3))):
            prompt = shared[: rng.randint(0, 40)] + [
                rng.randrange(97, 120) for _ in range(rng.randint(1, 30))
            ]
            picture = bytes(rng.choices(range(97, 105), k=4))
            length = rng.randint(1, 40)
            at = rng.randrange(len(prompt))
            shown = {at: picture} if at + 4 <= len(prompt) and rng.random() < 0.6 else {}
            sequence = submit(engine, prompt, pictures=shown, max_tokens=length)[0]
            read = prompt if not shown else prompt[:at] + list(picture) + prompt[at + 4 :]
            made[sequence] = read, length
        outputs += engine.step()
        if rng.random() < 0.15 and engine.scheduler.has_work:
            scheduler = engine.scheduler
            rng.choice(
                [*scheduler.waiting, *scheduler.prefilling, *scheduler.running]
            ).aborted = True
    outputs += run(engine)
    said = texts(outputs)
    complete = {s: said[s] for s in made if not s.aborted}
    assert len(complete) > 100
    assert complete == {s: answer(*made[s]) for s in complete}
    assert all(answer(*made[s]).startswith(said[s]) for s in made)
    assert engine.cache.used_bytes == 0
    assert engine.cache.allocated_bytes <= engine.cache.budget
    assert engine.gauges.feature_bytes <= engine.limits.feature_bytes


def test_what_has_no_room_in_the_cache_waits_for_it(make_engine: Make) -> None:
    engine = make_engine(8, kv_bytes=2 * 128 * 8)
    engine.model.eos_ids = NEVER
    three = [submit(engine, [letter], max_tokens=20)[0] for letter in (100, 102, 104)]
    outputs = engine.step()
    assert engine.gauges.running == 2
    assert engine.gauges.waiting == 1
    said = texts(outputs + run(engine))
    assert said == {s: answer(s.prompt.token_ids, 20, end=False) for s in three}


def test_what_can_never_fit_is_refused_with_the_numbers(make_engine: Make) -> None:
    engine = make_engine(8, FakeModel(max_length=10_000), kv_bytes=4096)
    with pytest.raises(
        InvalidRequest, match=r"the prompt's 300 tokens.* and 300 of the answer.* 0\.0 MiB"
    ) as caught:
        engine.check_fit(Prompt((97,) * 300), 300)
    assert (caught.value.limit, caught.value.actual) == (4096, 8 * 1024)
    engine.check_fit(Prompt((97,) * 300), 200)


def test_a_small_request_does_not_overtake_a_large_one_that_waits(make_engine: Make) -> None:
    engine = make_engine(8, FakeModel(max_length=512), kv_bytes=(256 + 128) * 8)
    submit(engine, [100], max_tokens=100)
    submit(engine, [101], max_tokens=100)
    large = submit(engine, [102], max_tokens=200)[0]
    small = submit(engine, [103], max_tokens=2)[0]
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order.index(large) < order.index(small)


def test_a_second_question_about_a_picture_neither_encodes_nor_reads_it_again(
    make_engine: Make,
) -> None:
    model = FakeModel(max_length=512)
    engine = make_engine(2, model)
    picture = {3: bytes(range(65, 95))}
    submit(engine, [97] * 40 + [98] * 4, pictures=picture, max_tokens=2)
    run(engine)
    assert (model.encoded, model.prefilled) == (1, 44)
    prompt = [97] * 40 + [99] * 6
    second = submit(engine, prompt, pictures=picture, max_tokens=9)[0]
    said = texts(run(engine))
    assert (model.encoded, model.prefilled) == (1, 44 + 6)
    read = prompt[:3] + list(range(65, 95)) + prompt[33:]
    assert said[second] == answer(read, 9)


def test_another_picture_in_the_same_place_is_read(make_engine: Make) -> None:
    model = FakeModel(max_length=512)
    engine = make_engine(2, model)
    for number in range(2):
        pictures = {3: bytes(range(65 + number, 95 + number))}
        made = submit(engine, [97] * 40, pictures=pictures, max_tokens=9)[0]
        read = [97] * 3 + list(pictures[3]) + [97] * 7
        assert texts(run(engine))[made] == answer(read, 9)
    assert model.encoded == 2


def test_logprobs_come_with_every_token_and_stay_with_their_row(make_engine: Make) -> None:
    engine = make_engine(4)
    plain = submit(engine, [100], max_tokens=5)[0]
    told = submit(engine, [101], max_tokens=5, logprobs=2)[0]
    outputs = run(engine)
    logprobs = [t for o in outputs if o.sequence is told and o.delta for t in o.delta.logprobs]
    assert "".join(t.text for t in logprobs) == answer([101], 5)
    assert all(len(t.top) == 2 and t.top[0].data == t.data for t in logprobs)
    assert not any(o.delta.logprobs for o in outputs if o.sequence is plain and o.delta)


@pytest.mark.parametrize(
    ("max_tokens", "said"), [(8, slice(3)), (5, slice(5))], ids=["stopped", "cut short"]
)
def test_logprobs_wait_with_the_text_that_is_held_back_and_go_with_the_stop_string(
    make_engine: Make, max_tokens: int, said: slice
) -> None:
    whole = answer([101], 8, end=False)
    engine = make_engine(4)
    engine.model.eos_ids = NEVER
    submit(engine, [101], max_tokens=max_tokens, logprobs=1, stop=(whole[3:6],))
    deltas = [output.delta for output in run(engine) if output.delta]
    assert "".join(delta.text for delta in deltas) == whole[said]
    assert all("".join(token.text for token in delta.logprobs) == delta.text for delta in deltas)


def test_an_answer_that_is_wanted_whole_is_one_delta_with_all_that_its_pieces_hold(
    make_engine: Make,
) -> None:
    engine = make_engine(4)
    pieces, whole = (submit(engine, [100], max_tokens=5, logprobs=1)[0] for _ in range(2))
    whole.stream = False
    outputs = run(engine)
    told = [o.delta for o in outputs if o.sequence is pieces and o.delta]
    (joined,) = (o.delta for o in outputs if o.sequence is whole)
    assert joined is not None
    assert len(told) > 1
    assert joined.text == "".join(delta.text for delta in told) == answer([100], 5)
    assert joined.logprobs == tuple(token for delta in told for token in delta.logprobs)
    assert (joined.finish_reason, joined.usage) == (told[-1].finish_reason, told[-1].usage)


def test_a_schema_holds_in_a_batch_with_free_answers(make_engine: Make) -> None:
    engine = make_engine(4, FakeModel(max_length=256))
    grammars = Grammars(engine.model.tokenizer, engine.model.eos_ids, engine.model.vocabulary)
    schema = '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false}'
    free = submit(engine, [100], max_tokens=30)[0]
    bound = sequences(
        request(LATER, max_tokens=200),
        Prompt((101,)),
        engine.model.tokenizer,
        grammars.compile(schema),
    )
    engine.scheduler.add(bound)
    said = texts(run(engine))
    assert json.loads(said[bound[0]])["a"] in (1, 2)
    assert said[free] == answer([100], 30)


def test_every_answer_that_begins_is_measured_to_its_end() -> None:
    class Counting(EngineMetrics):
        def __init__(self) -> None:
            self.first = 0
            self.reasons: list[str] = []
            self.rows: list[int] = []

        def first_token(self, seconds: float) -> None:
            assert seconds >= 0
            self.first += 1

        def step(self, batch: int, seconds: float | None) -> None:
            self.rows.append(batch)

        def ended(self, reason: str, usage: Usage, index: int) -> None:
            self.reasons.append(reason)

    metrics = Counting()
    engine = Engine(FakeModel(), EngineLimits(max_batch_size=4, max_prefill_slice_s=60), metrics)
    engine.model.eos_ids = NEVER
    for letter in (100, 101, 666):
        submit(engine, [letter], max_tokens=4)
    aborted = submit(engine, [102], max_tokens=40)[0]
    submit(engine, [103], deadline=time.time() - 1)
    engine.step()
    engine.step()
    aborted.aborted = True
    run(engine)
    assert sorted(metrics.reasons) == ["abort", "deadline", "error", "length", "length"]
    assert metrics.first == 3
    assert max(metrics.rows) == 3


def test_a_request_that_breaks_prefill_fails_alone(make_engine: Make) -> None:
    engine = make_engine(8)
    good = [submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101, 102)]
    bad = submit(engine, [666])[0]
    outputs = run(engine)
    said = texts(outputs)
    assert said.pop(bad) == "<ModelFailed>"
    assert said == {s: answer(s.prompt.token_ids, 8) for s in good}
    error = next(output.error for output in outputs if output.error)
    assert isinstance(error, ModelFailed)
    assert "RuntimeError" in error.message


def test_a_row_that_cannot_be_sampled_fails_alone(make_engine: Make) -> None:
    engine = make_engine(8)
    good = [submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101)]
    bad = submit(engine, [668])[0]
    said = texts(run(engine))
    assert said.pop(bad) == "<ModelFailed>"
    assert said == {s: answer(s.prompt.token_ids, 8) for s in good}


def test_a_request_that_breaks_decode_fails_alone_and_the_others_lose_nothing(
    make_engine: Make,
) -> None:
    engine = make_engine(8)
    good = [submit(engine, [letter], max_tokens=12)[0] for letter in (100, 103, 104)]
    bad = submit(engine, [667, 98], max_tokens=12)[0]
    said = texts(run(engine))
    assert said.pop(bad).endswith("<ModelFailed>")
    assert said == {s: answer(s.prompt.token_ids, 12) for s in good}


def test_a_deadline_ends_what_waits_and_what_runs(make_engine: Make) -> None:
    engine = make_engine(1, FakeModel(max_length=10**6))
    running = submit(engine, [99], deadline=time.time() + 0.2, max_tokens=10**6, stop=("never",))[0]
    engine.model.eos_ids = NEVER
    waiting = submit(engine, [100], deadline=time.time() + 0.1, max_tokens=5)[0]
    errors = {output.sequence: output.error for output in run(engine) if output.error}
    assert set(errors) == {running, waiting}
    assert all(isinstance(error, DeadlineExceeded) for error in errors.values())


def test_an_aborted_sequence_is_gone_by_the_next_step(make_engine: Make) -> None:
    engine = make_engine(4)
    engine.model.eos_ids = NEVER
    kept, dropped = (submit(engine, [letter], max_tokens=20)[0] for letter in (100, 101))
    waiting = [submit(engine, [102], max_tokens=20)[0] for _ in range(5)][-1]
    engine.step()
    dropped.aborted = waiting.aborted = True
    outputs = engine.step()
    assert dropped not in {output.sequence for output in outputs}
    assert dropped not in engine.scheduler.running
    assert waiting not in engine.scheduler.waiting
    assert kept in engine.scheduler.running


def test_a_row_that_failed_leaves_nothing_behind(make_engine: Make) -> None:
    engine = make_engine(4)
    submit(engine, [668, 100, 101])
    run(engine)
    assert engine.cache.reserve("next", 10)  # type: ignore[arg-type]
    assert not any(layer.any() for layer in engine.cache.row("next").layers)  # type: ignore[arg-type]


def test_what_left_while_it_entered_leaves_nothing_behind(make_engine: Make) -> None:
    engine = make_engine(4, max_prefill_slice_s=0.0, prefill_tokens=16)
    prefilling = submit(engine, list(range(1, 100)))[0]
    engine.step()
    assert any(layer.any() for layer in engine.cache.row(prefilling).layers)
    prefilling.aborted = True
    engine.step()
    assert engine.cache.reserve("next", 99)  # type: ignore[arg-type]
    assert not any(layer.any() for layer in engine.cache.row("next").layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("failures", [1, 2])
def test_no_memory_for_a_row_costs_what_is_kept_first_and_then_that_request(
    make_engine: Make, failures: int
) -> None:
    class Short(KVCache[Sequence]):
        left = failures

        def reserve(self, holder: Sequence, tokens: int) -> bool:
            if holder.prompt.token_ids[0] == 105 and self.left:
                self.left -= 1
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().reserve(holder, tokens)

    engine = make_engine(4)
    engine.cache.__class__ = Short
    submit(engine, [97] * 40, max_tokens=2)
    run(engine)
    assert engine.gauges.prefix_bytes
    starved, other = (submit(engine, [letter], max_tokens=8)[0] for letter in (105, 106))
    said = texts(run(engine))
    assert said[other] == answer([106], 8)
    assert said[starved] == (answer([105], 8) if failures == 1 else "<ModelFailed>")
    assert not engine.gauges.prefix_bytes


def test_a_lost_device_ends_the_engine(make_engine: Make) -> None:
    class Lost(FakeModel):
        def decode(self, *arguments: object) -> ModelOutput:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    engine = make_engine(4, Lost())
    engine.model.eos_ids = NEVER
    submit(engine, [100], max_tokens=8)
    with pytest.raises(torch.AcceleratorError):
        run(engine)


def test_a_text_that_cannot_be_made_ends_its_own_answer_only(make_engine: Make) -> None:
    engine = make_engine(4)
    engine.model.eos_ids = NEVER
    bad, good = (submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101))
    bad.text.push = None  # type: ignore[assignment]
    said = texts(run(engine))
    assert said == {bad: "<ModelFailed>", good: answer([101], 8, end=False)}


def test_what_is_read_in_vain_is_not_kept(make_engine: Make) -> None:
    model = FakeModel()
    engine = make_engine(4, model)
    for _ in range(2):
        submit(engine, [668, *range(97, 127)], pictures={5: b"cat"})
        run(engine)
    assert model.encoded == 2
    assert engine.gauges.prefix_bytes == engine.gauges.feature_bytes == 0
