"""A server that traces, and a collector: one trace a request, from HTTP to the last token."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.tracing import EXPORTER, EXPORTER_VARIABLE
from testing.scenes import draw_scene
from testing.server import running_server
from testing.trace_collector import Collector, ReceivedSpan, outline, running_collector

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
CLOCK_S = 0.002
"""What times of two processes of a machine may differ by."""
TREE = """
proxy_http_request Ingress POST /v1/chat/completions
  route_to_replica Ingress __call__
    replica_handle_request Ingress __call__
      read request
      chat smolvlm
        route_to_replica Preprocessor process
          replica_handle_request Preprocessor process
            wait for a thread
            preprocess picture
              decode
              resize
              denoise
              color_balance
        route_to_replica smolvlm generate
          replica_handle_request smolvlm generate
            prepare prompt
            queue
            prefill
            decode
"""
PROCESSES = {
    "proxy_http_request Ingress POST /v1/chat/completions": "proxy",
    "replica_handle_request Ingress __call__": "Ingress",
    "chat smolvlm": "Ingress",
    "preprocess picture": "Preprocessor",
    "prefill": "smolvlm",
}


@dataclass
class Client:
    """Sends requests, each as part of a trace of its own."""

    url: str
    picture: str
    parent: str = field(default_factory=lambda: secrets.token_hex(8))

    def headers(self, trace: str, flags: str = "01") -> dict[str, str]:
        return {"traceparent": f"00-{trace}-{self.parent}-{flags}"}

    def body(self, **changes: Any) -> dict[str, Any]:
        parts = [
            {"type": "image_url", "image_url": {"url": self.picture}},
            {"type": "text", "text": "Describe this image."},
        ]
        body = {"model": "smolvlm", "messages": [{"role": "user", "content": parts}]}
        return {**body, **changes}

    def chat(self, flags: str = "01", **changes: Any) -> tuple[str, httpx.Response]:
        trace = secrets.token_hex(16)
        response = httpx.post(
            f"{self.url}/v1/chat/completions",
            json=self.body(**changes),
            headers=self.headers(trace, flags),
            timeout=60,
        )
        return trace, response

    def leave_stream(self) -> str:
        """Ask for a long stream, and leave after its first text."""
        trace = secrets.token_hex(16)
        body = self.body(stream=True, max_tokens=900, min_tokens=900)
        request = httpx.stream(
            "POST",
            f"{self.url}/v1/chat/completions",
            json=body,
            headers=self.headers(trace),
            timeout=60,
        )
        with request as response:
            for line in response.iter_lines():
                chunk = line.removeprefix("data: ")
                if chunk and json.loads(chunk)["choices"][0]["delta"].get("content"):
                    break
        return trace


@dataclass
class Recorded:
    """What a server sent to the collector while requests were made."""

    collector: Collector
    parent: str
    plain: str
    repeated: str
    unsampled: str
    refused: str
    left: str
    job: str

    def trace(self, trace: str) -> list[ReceivedSpan]:
        return self.collector.trace(trace)


@pytest.fixture(scope="module")
def recorded() -> Iterator[Recorded]:
    _, _, picture = draw_scene(3)
    with running_collector() as collector:
        environment = {
            EXPORTER_VARIABLE: EXPORTER,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "300",
        }
        with running_server(ROOT / "serve_config.yaml", environment=environment) as url:
            client = Client(url, picture)
            plain, response = client.chat()
            assert response.status_code == 200, response.text
            repeated, _ = client.chat(n=2, temperature=1.0)
            unsampled, response = client.chat(flags="00")
            assert response.status_code == 200, response.text
            refused, response = client.chat(temperature=99)
            assert response.status_code == 400, response.text
            left = client.leave_stream()
            job = {"job_type": "caption", "input": {"image": picture}}
            response = httpx.post(f"{url}/api/v1/jobs", json=job, timeout=60)
            job_id = response.raise_for_status().json()["id"]

            def have_arrived(spans: list[ReceivedSpan]) -> bool:
                roots = {span.trace for span in spans if span.name.startswith("proxy_http")}
                answers = {span.trace for span in spans if span.name == "chat smolvlm"}
                stages = {span.trace for span in spans if span.name == "prefill"}
                jobs = {span.trace for span in spans if span.name == "job caption"}
                answered = {plain, repeated, left}
                return bool(
                    roots >= {*answered, refused}
                    and answers >= answered
                    and stages >= {*answered, *jobs}
                    and jobs
                )

            collector.wait_for(have_arrived)
        # The server has ended, and has sent all that it will ever send.
        yield Recorded(collector, client.parent, plain, repeated, unsampled, refused, left, job_id)


def names(spans: list[ReceivedSpan]) -> str:
    lines = (line[:58].rstrip() for line in outline(spans).splitlines())
    return "\n".join(lines)


def named(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    """Return the last span of a name: ``decode`` is also a step of preprocessing."""
    return [span for span in spans if span.name == name][-1]


def test_a_request_is_one_trace_from_http_to_the_last_token(recorded: Recorded) -> None:
    spans = recorded.trace(recorded.plain)
    print(outline(spans))
    assert names(spans) == TREE.strip()
    assert {name: named(spans, name).process for name in PROCESSES} == PROCESSES
    assert {span.resource["service.name"] for span in spans} == {"raylens"}
    assert not any(span.is_error for span in spans)


def test_the_trace_continues_the_clients(recorded: Recorded) -> None:
    (root, *_) = recorded.trace(recorded.plain)
    assert root.parent == recorded.parent


def test_a_span_lies_within_the_one_that_it_is_part_of(recorded: Recorded) -> None:
    spans = recorded.trace(recorded.plain)
    by_id = {span.id: span for span in spans}
    for span in spans:
        assert span.start <= span.end, span.name
        parent = by_id.get(span.parent)
        if parent is None or parent.name.startswith("route_to_replica"):
            continue  # which ends once the call has been sent
        assert parent.start - CLOCK_S <= span.start, span.name
        assert span.end <= parent.end + CLOCK_S, span.name


def test_the_stages_follow_each_other(recorded: Recorded) -> None:
    spans = recorded.trace(recorded.plain)
    order = ("read request", "preprocess picture", "prepare prompt", "queue", "prefill", "decode")
    stages = [named(spans, name) for name in order]
    for earlier, later in pairwise(stages):
        assert earlier.end <= later.start + CLOCK_S, (earlier.name, later.name)
    told = named(spans, "chat smolvlm").attributes
    assert told["gen_ai.usage.input_tokens"] == stages[4].attributes["gen_ai.usage.input_tokens"]
    assert told["gen_ai.usage.output_tokens"] == stages[5].attributes["gen_ai.usage.output_tokens"]
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert stages[4].attributes["gen_ai.usage.cache_read.input_tokens"] == 0
    assert stages[4].attributes["raylens.pictures"] == 1


def test_each_answer_has_stages_of_its_own_and_the_prefix_is_shared(recorded: Recorded) -> None:
    spans = recorded.trace(recorded.repeated)
    prefills = [span for span in spans if span.name == "prefill"]
    assert sorted(span.attributes["raylens.answer"] for span in prefills) == [0, 1]
    assert all(span.attributes["gen_ai.usage.cache_read.input_tokens"] > 0 for span in prefills)


def test_a_refused_request_says_so(recorded: Recorded) -> None:
    spans = recorded.trace(recorded.refused)
    reading = named(spans, "read request")
    assert reading.is_error
    assert reading.attributes["error.type"] == "400"
    ingress = named(spans, "replica_handle_request Ingress __call__")
    assert ingress.attributes["http.response.status_code"] == 400
    assert ingress.attributes["raylens.route"] == "/v1/chat/completions"
    assert not any(span.name.startswith("chat") for span in spans)


def test_a_stream_that_its_client_leaves_ends_early(recorded: Recorded) -> None:
    spans = recorded.trace(recorded.left)
    for name in ("chat smolvlm", "decode"):
        assert named(spans, name).is_error, name
        assert named(spans, name).attributes["error.type"] == "canceled"
    assert 0 < named(spans, "decode").attributes["gen_ai.usage.output_tokens"] < 900


def test_an_attempt_at_a_job_is_a_trace_of_its_own(recorded: Recorded) -> None:
    (job,) = (s for s in recorded.collector.spans if s.attributes.get("raylens.job_id"))
    assert job.name == "job caption"
    assert job.attributes == {"raylens.job_id": recorded.job, "raylens.attempt": 1}
    assert (job.parent, job.process) == ("", "jobs")
    spans = recorded.trace(job.trace)
    processes = {span.process for span in spans}
    assert processes == {"jobs", "Preprocessor", "moondream"}
    assert {"preprocess picture", "prefill"} <= {span.name for span in spans}


def test_a_client_that_does_not_trace_is_not_traced(recorded: Recorded) -> None:
    assert recorded.trace(recorded.unsampled) == []


def test_no_trace_begins_in_the_middle(recorded: Recorded) -> None:
    spans = recorded.collector.spans
    roots = [span for span in spans if span.parent in ("", recorded.parent)]
    assert {span.name.split()[0] for span in roots} == {"proxy_http_request", "job"}


def test_without_the_variable_nothing_is_sent() -> None:
    _, _, picture = draw_scene(3)
    with running_collector() as collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        with running_server(ROOT / "serve_config.yaml", environment=environment) as url:
            _, response = Client(url, picture).chat()
            assert response.status_code == 200, response.text
        assert collector.spans == []
