from __future__ import annotations

import itertools
from dataclasses import replace

from raylens.core.fairness import JOB_RANK_DELAY_S
from raylens.core.types import Caption, Priority, SamplingParams, VisionRequest
from raylens.engine.model import Prompt
from raylens.engine.scheduler import Scheduler
from raylens.engine.sequence import GenerationSequence, make_sequences
from raylens.engine.service_counters import ServiceCounters
from testing.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()
PROMPT_TOKENS = itertools.count(1000)


def sequence(
    client: str,
    tokens: int = 10,
    priority: Priority = Priority.INTERACTIVE,
    arrived_at: float | None = None,
) -> GenerationSequence:
    request = VisionRequest("id", "model", Caption(), 1e12, SamplingParams(), priority=priority)
    prompt = Prompt((next(PROMPT_TOKENS),) * tokens)
    (made,) = make_sequences(replace(request, client=client), prompt, TOKENIZER)
    if arrived_at is not None:
        made.arrived_at = arrived_at
    return made


def finish(scheduler: Scheduler, *sequences: GenerationSequence) -> None:
    scheduler.remove(lambda each: any(each is sequence for sequence in sequences))


def run(scheduler: Scheduler, output_tokens: int = 10) -> list[str]:
    """Run everything one at a time. Returns the clients in the order of their service."""
    order = []
    while scheduler.has_work:
        (admitted,) = scheduler.admit(lambda sequence: True)
        order.append(admitted.client)
        admitted.output_ids = [1] * output_tokens
        scheduler.start_decoding([admitted])
        finish(scheduler, admitted)
    return order


def test_one_client_is_served_in_order_of_arrival() -> None:
    scheduler = Scheduler(1)
    waiting = [sequence("a", tokens) for tokens in (50, 10, 30)]
    scheduler.add(waiting)
    admitted = []
    while scheduler.has_work:
        admitted += scheduler.admit(lambda sequence: True)
        finish(scheduler, admitted[-1])
    assert admitted == waiting


def test_a_flood_waits_for_itself() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("flood") for _ in range(20)])
    (first,) = scheduler.admit(lambda sequence: True)
    scheduler.add([sequence("another")])
    first.output_ids = [1]
    finish(scheduler, first)
    assert run(scheduler)[0] == "another"


def test_clients_take_turns() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence(client) for client in "aaaaabbbbb"])
    assert run(scheduler)[:8] in ([*"abababab"], [*"abbaabba"])


def test_a_turn_is_measured_in_tokens() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("long", 100) for _ in range(5)])
    scheduler.add([sequence("short", 10) for _ in range(20)])
    order = run(scheduler, 0)
    assert order[:11].count("short") == 10


def test_a_client_gets_no_credit_for_the_time_in_which_it_asked_for_nothing() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("busy") for _ in range(30)])
    for _ in range(20):
        (admitted,) = scheduler.admit(lambda sequence: True)
        finish(scheduler, admitted)
    scheduler.add([sequence("late") for _ in range(10)])
    assert run(scheduler)[:8].count("busy") in (3, 4, 5)


def test_jobs_wait_behind_interactive_requests_of_all_clients() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("a", priority=Priority.JOB, arrived_at=100.0)])
    scheduler.add([sequence("b", arrived_at=101.0 + n) for n in range(3)])
    assert run(scheduler) == [*"bbba"]


def test_a_job_that_has_waited_long_enough_goes_first() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("b", arrived_at=100.0 + JOB_RANK_DELAY_S + 1) for _ in range(3)])
    scheduler.add([sequence("a", priority=Priority.JOB, arrived_at=100.0)])
    assert run(scheduler)[0] == "a"


def test_a_quiet_client_goes_before_a_backlog_while_an_old_job_waits() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("a", priority=Priority.JOB, arrived_at=100.0)])
    scheduler.add([sequence("flood", arrived_at=100.0 + n) for n in range(9)])
    (running,) = scheduler.admit(lambda sequence: True)
    scheduler.add([sequence("quiet", arrived_at=100.0 + JOB_RANK_DELAY_S + 1)])
    running.output_ids = [1] * 10
    finish(scheduler, running)
    assert run(scheduler)[:2] == ["a", "quiet"]


def test_a_new_job_never_goes_first_because_its_client_has_had_little() -> None:
    scheduler = Scheduler(1)
    scheduler.add([sequence("a")])
    (running,) = scheduler.admit(lambda sequence: True)
    late = 100.0 + JOB_RANK_DELAY_S + 1
    scheduler.add([sequence("a", priority=Priority.JOB, arrived_at=100.0)])
    scheduler.add([sequence("b", arrived_at=late)])
    scheduler.add([sequence("c", priority=Priority.JOB, arrived_at=late)])
    running.output_ids = [1] * 10
    finish(scheduler, running)
    assert run(scheduler) == ["b", "c", "a"]


def test_counters_forget_clients_that_no_longer_count() -> None:
    counters = ServiceCounters()
    for number in range(100):
        gone = sequence(f"client {number}")
        busy = sequence("busy", 1000)
        counters.add([gone], [busy])
        counters.end(gone)
    assert len(counters.totals([])) <= 3


def test_a_larger_batch_admits_more_at_once() -> None:
    scheduler = Scheduler(1, max_prefill_batch_size=4, max_prefill_tokens=1000)
    first, *others = [sequence("a") for _ in range(4)]
    scheduler.add([first, *others])
    scheduler.admit(lambda sequence: True)
    scheduler.start_decoding([first])
    first.output_ids = [1]
    assert scheduler.admit(lambda sequence: True) == []
    scheduler.resize(3, 4)
    assert scheduler.admit(lambda sequence: True) == others[:2]
    assert len({entry.slot for entry in (first, *others[:2])}) == 3


def test_a_smaller_batch_lets_go_on_what_runs_and_admits_when_there_is_room() -> None:
    scheduler = Scheduler(4, max_prefill_batch_size=4, max_prefill_tokens=1000)
    running = [sequence("a") for _ in range(4)]
    scheduler.add(running)
    scheduler.start_decoding(list(scheduler.admit(lambda sequence: True)))
    for each in running:
        each.output_ids = [1]
    scheduler.resize(2, 4)
    last = [sequence("a"), sequence("a")]
    scheduler.add(last)
    by_slot = sorted(running, key=lambda each: each.slot)
    for done, admitted in ((0, []), (3, []), (1, last[:1]), (2, last[1:])):
        finish(scheduler, by_slot[done])
        assert list(scheduler.admit(lambda sequence: True)) == admitted
        scheduler.start_decoding(admitted)
    assert {each.slot for each in last} == {0, 1}
