"""Tracing: what Serve calls in each process of a server that has been told to trace.

``RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH=deployments.tracing:otlp``, set before Ray starts, turns it
on. The spans of our own are in :mod:`deployments.spans`. Unless tracing is on, no process imports
OpenTelemetry because of this module.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from raylens import __version__
from raylens.core.logs import set_trace_ids

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.sdk.trace.sampling import Sampler

EXPORTER_VARIABLE = "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH"
RATIO_VARIABLE = "RAY_SERVE_TRACING_SAMPLING_RATIO"
EXPORTER = f"{__name__}:otlp"
MISSING = f"{EXPORTER_VARIABLE}={EXPORTER} needs pip install 'raylens[tracing]'"
_SERVES_REFUSAL = "Overriding of current TracerProvider is not allowed"
"""What OpenTelemetry logs if there is a provider already."""


def otlp() -> list[SpanProcessor]:
    """Send spans by OTLP over HTTP to ``OTEL_EXPORTER_OTLP_ENDPOINT`` (http://localhost:4318).

    Raises ``ImportError``, which names the extra to install, if the exporter is missing, and
    ``ValueError`` if the sampling ratio is no number from 0 to 1.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ImportError(MISSING) from error
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    set_provider(make_sampler(os.environ), make_resource(process_name()))
    set_trace_ids(current_trace_id)
    return [BatchSpanProcessor(OTLPSpanExporter())]


def find_problem(environment: Mapping[str, str]) -> str | None:
    """Return why a server with these variables could not trace, or None."""
    if environment.get(EXPORTER_VARIABLE) != EXPORTER:
        return None
    try:
        is_installed = find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:
        is_installed = False
    if not is_installed:
        return MISSING
    try:
        _ratio(environment)
    except ValueError as error:
        return str(error)
    return None


def set_provider(sampler: Sampler, resource: Resource) -> None:
    """Install a tracer provider of ours.

    Serve then tries to install its own, which OpenTelemetry refuses, and adds the processors to
    ours. Serve's has no name for the process, and samples each hop of a request anew.
    """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider(sampler=sampler, resource=resource))
    logging.getLogger("opentelemetry.trace").addFilter(_is_no_refusal)


def _is_no_refusal(record: logging.LogRecord) -> bool:
    return record.getMessage() != _SERVES_REFUSAL


def make_resource(process: str) -> Resource:
    """Return the attributes of all spans of a process. ``OTEL_RESOURCE_ATTRIBUTES`` and
    ``OTEL_SERVICE_NAME`` add to them."""
    from opentelemetry.sdk.resources import Resource

    ours = {
        "service.version": __version__,
        "service.instance.id": f"{os.uname().nodename}:{os.getpid()}",
        "raylens.process": process,
    }
    if "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        ours["service.name"] = os.environ.get("OTEL_SERVICE_NAME") or "raylens"
    return Resource.create(ours)


def process_name() -> str:
    """Return ``proxy``, the name of this replica's deployment, or that of the deployment actor."""
    import ray

    if not ray.is_initialized():  # asking for an actor's name would start Ray
        return "none"
    name = ray.get_runtime_context().get_actor_name() or ""
    if name.startswith("SERVE_PROXY_ACTOR"):
        return "proxy"
    parts = name.split("#")  # SERVE_REPLICA::application#deployment#replica
    return parts[1] if len(parts) > 1 else name.rpartition("::")[2]


def make_sampler(environment: Mapping[str, str]) -> Sampler:
    """Return a sampler that traces requests whole or not at all.

    What a traced request calls is traced, too. An untraced request has no context to pass on, so
    that its next hop looks like the begin of a trace. Serve would then choose again, and record
    traces that begin in the middle. Here, a trace begins in a proxy or, if proxies don't trace, in
    the ingress.
    """
    from opentelemetry.sdk.trace.sampling import (
        Decision,
        ParentBased,
        SamplingResult,
        TraceIdRatioBased,
    )

    proxies_trace = bool(environment.get(EXPORTER_VARIABLE)) and not _has_direct_ingress()

    class Roots(TraceIdRatioBased):
        def should_sample(
            self, parent_context: Any, trace_id: int, name: str, *rest: Any, **more: Any
        ) -> SamplingResult:
            if _begins_in_the_middle(name, proxies_trace):
                return SamplingResult(Decision.DROP)
            return super().should_sample(parent_context, trace_id, name, *rest, **more)

    return ParentBased(Roots(_ratio(environment)))


def _begins_in_the_middle(name: str, proxies_trace: bool) -> bool:
    if name.startswith("replica_handle_request"):
        return proxies_trace or not name.endswith(" __call__")
    return name.startswith("route_to_replica")


def _has_direct_ingress() -> bool:
    from ray.serve._private.constants import RAY_SERVE_ENABLE_DIRECT_INGRESS

    return bool(RAY_SERVE_ENABLE_DIRECT_INGRESS)


def _ratio(environment: Mapping[str, str]) -> float:
    """Return the share of the requests to trace: all, unless a variable says otherwise.

    Serve's own default is one in a hundred.
    """
    text = environment.get(RATIO_VARIABLE, "1")
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ValueError(f"{RATIO_VARIABLE}: expected a number from 0 to 1, not {text!r}")
    return ratio


def trace_this_actor(name: str) -> None:
    """Do in an actor of ours what Serve does in its own. Does nothing if tracing is off."""
    from ray.serve._private.tracing_utils import setup_tracing

    setup_tracing(component_name=name, component_id=str(os.getpid()))


def current_trace_id() -> str | None:
    """Return the id of the trace that the current task belongs to, in hex."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else None
