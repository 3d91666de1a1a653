from __future__ import annotations

import random
import time
from collections import defaultdict

from raylens.engine.engine import Engine, Output
from raylens.engine.model import Prompt
from raylens.engine.sequence import Sequence, sequences
from raylens.errors import DeadlineExceeded, ModelFailed
from raylens.types import FinishReason, Priority
from tests.unit.raylens.engine.fakes import FakeModel, answer, request

LATER = time.time() + 3600


def submit(engine: Engine, prompt: list[int], deadline: float = LATER, **sampling: object) -> list[Sequence]:
    made = sequences(request(deadline, **sampling), Prompt(tuple(prompt)), engine.model.tokenizer)
    engine.scheduler.add(made)
    return made


def run(engine: Engine) -> list[Output]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def texts(outputs: list[Output]) -> dict[Sequence, str]:
    joined: dict[Sequence, str] = defaultdict(str)
    for output in outputs:
        joined[output.sequence] += output.delta.text if output.delta else f"<{type(output.error).__name__}>"
    return joined


def test_every_answer_is_what_the_model_says_to_it_alone() -> None:
    rng = random.Random(1)
    engine = Engine(FakeModel(), max_batch_size=5)
    wanted = {}
    for _ in range(40):
        prompt = [rng.randrange(97, 120) for _ in range(rng.randint(1, 20))]
        length = rng.randint(1, 30)
        wanted[submit(engine, prompt, max_tokens=length)[0]] = answer(prompt, length)
    assert texts(run(engine)) == wanted


def test_each_answer_ends_once_with_its_reason_and_usage() -> None:
    engine = Engine(FakeModel(), max_batch_size=8)
    for letter in range(97, 117):
        submit(engine, [letter], max_tokens=6)
    ends = [output.delta for output in run(engine) if output.delta and output.delta.finish_reason]
    assert len(ends) == 20
    assert {end.finish_reason for end in ends} == {FinishReason.STOP, FinishReason.LENGTH}
    assert all(end.usage and end.usage.prompt_tokens == 1 and end.usage.completion_tokens <= 6 for end in ends)


def test_rows_leave_a_running_batch_as_they_finish() -> None:
    model = FakeModel()
    engine = Engine(model, max_batch_size=4)
    for length in (1, 2, 3, 5):
        submit(engine, [101], max_tokens=length)
    run(engine)
    assert sorted(model.batches, reverse=True) == model.batches
    assert model.batches[0] > model.batches[-1]


def test_the_context_ends_an_answer() -> None:
    engine = Engine(FakeModel(max_length=10), max_batch_size=1)
    made = submit(engine, [98] * 7, max_tokens=100)[0]
    run(engine)
    assert len(made.output_ids) <= 3


def test_answers_to_one_prompt_share_its_prefill() -> None:
    model = FakeModel()
    engine = Engine(model, max_batch_size=8)
    made = submit(engine, [100, 101], n=3, max_tokens=8)
    said = texts(run(engine))
    assert model.prefilled == 1
    assert {said[s] for s in made} == {answer([100, 101], 8)}
    assert [s.index for s in made] == [0, 1, 2]


def test_interactive_requests_go_before_jobs_and_each_in_order_of_arrival() -> None:
    engine = Engine(FakeModel(), max_batch_size=1)
    job, first, second = (submit(engine, [letter], max_tokens=2)[0] for letter in (100, 101, 102))
    job.priority = Priority.JOB
    order = list(dict.fromkeys(output.sequence for output in run(engine)))
    assert order == [first, second, job]


def test_a_request_that_breaks_prefill_fails_alone() -> None:
    engine = Engine(FakeModel(), max_batch_size=8)
    good = [submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101, 102)]
    bad = submit(engine, [666])[0]
    outputs = run(engine)
    said = texts(outputs)
    assert said.pop(bad) == "<ModelFailed>"
    assert said == {s: answer(s.prompt.token_ids, 8) for s in good}
    error = next(output.error for output in outputs if output.error)
    assert isinstance(error, ModelFailed)
    assert "RuntimeError" in error.message


def test_a_row_that_cannot_be_sampled_fails_alone() -> None:
    engine = Engine(FakeModel(), max_batch_size=8)
    good = [submit(engine, [letter], max_tokens=8)[0] for letter in (100, 101)]
    bad = submit(engine, [668])[0]
    said = texts(run(engine))
    assert said.pop(bad) == "<ModelFailed>"
    assert said == {s: answer(s.prompt.token_ids, 8) for s in good}


def test_the_cache_is_touched_only_when_rows_leave() -> None:
    model = FakeModel()
    model.eos_ids = frozenset()
    engine = Engine(model, max_batch_size=3)
    for length in (4, 4, 12):
        submit(engine, [99], max_tokens=length)
    run(engine)
    assert model.selected == 1


def test_a_request_that_breaks_decode_fails_alone_and_the_others_lose_nothing() -> None:
    engine = Engine(FakeModel(), max_batch_size=8)
    good = [submit(engine, [letter], max_tokens=12)[0] for letter in (100, 103, 104)]
    bad = submit(engine, [667, 98], max_tokens=12)[0]
    said = texts(run(engine))
    assert said.pop(bad).endswith("<ModelFailed>")
    assert said == {s: answer(s.prompt.token_ids, 12) for s in good}


def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    engine = Engine(FakeModel(max_length=10**6), max_batch_size=1)
    running = submit(engine, [99], deadline=time.time() + 0.2, max_tokens=10**6, stop=("never",))[0]
    engine.model.eos_ids = frozenset()
    waiting = submit(engine, [100], deadline=time.time() + 0.1, max_tokens=5)[0]
    errors = {output.sequence: output.error for output in run(engine) if output.error}
    assert set(errors) == {running, waiting}
    assert all(isinstance(error, DeadlineExceeded) for error in errors.values())


def test_an_aborted_sequence_is_gone_by_the_next_step() -> None:
    engine = Engine(FakeModel(), max_batch_size=4)
    engine.model.eos_ids = frozenset()
    kept, dropped = (submit(engine, [letter], max_tokens=20)[0] for letter in (100, 101))
    waiting = [submit(engine, [102], max_tokens=20)[0] for _ in range(5)][-1]
    engine.step()
    dropped.aborted = waiting.aborted = True
    outputs = engine.step()
    assert dropped not in {output.sequence for output in outputs}
    assert dropped not in engine.scheduler.running
    assert waiting not in engine.scheduler.waiting
    assert kept in engine.scheduler.running
