"""What Serve calls in each process: the exporter, the sampler and the name of the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    set_span_in_context,
)

from deployments.tracing import (
    EXPORTER,
    EXPORTER_VARIABLE,
    MISSING,
    RATIO_VARIABLE,
    find_problem,
    make_resource,
    make_sampler,
)

ON = {EXPORTER_VARIABLE: EXPORTER}
ROOTS = (
    "proxy_http_request",
    "job caption",
    "route_to_replica",
    "replica_handle_request Ingress __call__",
    "replica_handle_request Preprocessor process",
)


def run_python(program: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


SET_UP_AS_SERVE_DOES = """
import json, logging
from opentelemetry import trace
from ray.serve._private import tracing_utils
logging.basicConfig(level=logging.WARNING)
is_on = tracing_utils.setup_tracing("replica", "1")
provider = trace.get_tracer_provider()
span = provider.get_tracer("test").start_span("proxy_http_request")
resource = dict(getattr(provider, "resource").attributes) if is_on else {}
print(json.dumps([is_on, span.is_recording(), resource]), flush=True)
import os; os._exit(0)  # without waiting for a collector
"""


def test_serve_traces_everything_once_the_variable_is_set() -> None:
    environment = {**ON, "OTEL_SERVICE_NAME": "cats", "OTEL_RESOURCE_ATTRIBUTES": "team=vision"}
    result = run_python(SET_UP_AS_SERVE_DOES, environment)
    is_on, is_recording, resource = json.loads(result.stdout)
    assert is_on
    assert is_recording
    assert resource["service.name"] == "cats"
    assert resource["team"] == "vision"
    assert resource["raylens.process"] == "none"  # Ray doesn't run here
    assert "Overriding" not in result.stderr


def test_serve_traces_nothing_without_the_variable() -> None:
    result = run_python(SET_UP_AS_SERVE_DOES, {EXPORTER_VARIABLE: ""})
    assert json.loads(result.stdout) == [False, False, {}], result.stderr


def test_the_missing_package_is_named_before_the_start_and_in_each_process() -> None:
    block = "import sys; sys.modules['opentelemetry.exporter.otlp.proto.http'] = None\n"
    check = (
        "import os; from deployments.tracing import find_problem; print(find_problem(os.environ))"
    )
    assert run_python(block + check, ON).stdout.strip() == MISSING
    assert "pip install 'raylens[tracing]'" in MISSING
    result = run_python(block + "from deployments.tracing import otlp; otlp()", ON)
    assert result.stderr.strip().endswith(f"ImportError: {MISSING}")


def test_raylens_run_names_what_is_wrong_and_starts_nothing() -> None:
    program = "from raylens.cli.main import app; app(['run', 'serve_config.yaml'])"
    result = run_python(program, {**ON, RATIO_VARIABLE: "2"})
    assert result.returncode == 1
    message = f"raylens: {RATIO_VARIABLE}: expected a number from 0 to 1, not '2'"
    assert result.stderr.strip().splitlines()[-1] == message


def test_other_exporters_and_none_are_no_problem() -> None:
    assert find_problem({}) is None
    assert find_problem({EXPORTER_VARIABLE: "mine:exporter", RATIO_VARIABLE: "often"}) is None
    assert find_problem(ON) is None


@pytest.mark.parametrize("ratio", ["-0.1", "1.1", "nan", "all", ""])
def test_a_ratio_is_a_number_from_0_to_1(ratio: str) -> None:
    assert str(find_problem({**ON, RATIO_VARIABLE: ratio})).startswith(RATIO_VARIABLE)


def sampled(sampler: Sampler, name: str, parent: TraceFlags | None = None) -> bool:
    tracer = TracerProvider(sampler=sampler).get_tracer("test")
    context = None
    if parent is not None:
        context = set_span_in_context(NonRecordingSpan(SpanContext(7, 7, True, parent)))
    return tracer.start_span(name, context).is_recording()


def test_a_trace_begins_in_a_proxy_or_a_job_and_nowhere_in_the_middle() -> None:
    sampler = make_sampler(ON)
    assert [name for name in ROOTS if sampled(sampler, name)] == list(ROOTS[:2])


def test_a_trace_begins_in_the_ingress_if_no_proxy_traces() -> None:
    sampler = make_sampler({})
    begins = [name for name in ROOTS if sampled(sampler, name)]
    assert begins == [*ROOTS[:2], "replica_handle_request Ingress __call__"]


@pytest.mark.parametrize("name", ROOTS)
def test_a_caller_decides_for_what_it_calls(name: str) -> None:
    for ratio in ("0", "1"):
        sampler = make_sampler({**ON, RATIO_VARIABLE: ratio})
        assert sampled(sampler, name, TraceFlags(TraceFlags.SAMPLED))
        assert not sampled(sampler, name, TraceFlags(TraceFlags.DEFAULT))


def test_the_ratio_is_that_of_whole_requests() -> None:
    sampler = make_sampler({**ON, RATIO_VARIABLE: "0.25"})
    count = sum(sampled(sampler, "proxy_http_request") for _ in range(4000))
    assert 850 < count < 1150


def test_the_resource_tells_the_processes_of_a_service_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    attributes = make_resource("Preprocessor").attributes
    assert attributes["service.name"] == "raylens"
    assert attributes["raylens.process"] == "Preprocessor"
    assert str(attributes["service.instance.id"]).endswith(f":{os.getpid()}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=dogs,raylens.process=x")
    attributes = make_resource("Preprocessor").attributes
    assert attributes["service.name"] == "dogs"
    assert attributes["raylens.process"] == "Preprocessor"
