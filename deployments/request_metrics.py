"""The metrics of HTTP requests, on Ray's Prometheus endpoint as ``ray_raylens_http_…``."""

from __future__ import annotations

from ray.serve import metrics

from raylens.api.access_log import AccessRecord, RequestMetrics

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
_TAGS = ("method", "route", "model", "task", "key")


class PrometheusRequestMetrics(RequestMetrics):
    """Counts requests and tokens by route, model, task and key. Serve adds replica and application.

    No tag has values that a client makes up: an unknown path counts as the route ``none``.
    """

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "raylens_http_requests",
            description="HTTP requests that ended; the status 0 stands for a client that left",
            tag_keys=(*_TAGS, "status"),
        )
        self._seconds = metrics.Histogram(
            "raylens_http_seconds",
            description="Time from an HTTP request's arrival to the end of its answer",
            boundaries=_SECONDS,
            tag_keys=_TAGS,
        )
        self._first_token_seconds = metrics.Histogram(
            "raylens_http_first_token_seconds",
            description="Time from the call of the model to the first part of its answer",
            boundaries=_SECONDS,
            tag_keys=_TAGS,
        )
        self._tokens = metrics.Counter(
            "raylens_http_tokens",
            description="Tokens of prompts and of answers",
            tag_keys=(*_TAGS, "kind"),
        )

    def record(self, record: AccessRecord) -> None:
        tags = {
            "method": record.method if record.route else "none",
            "route": record.route or "none",
            "model": record.model or "none",
            "task": record.task or "none",
            "key": record.key or "none",
        }
        self._requests.inc(tags={**tags, "status": str(record.status)})
        self._seconds.observe(record.seconds, tags=tags)
        if record.first_token_s is not None:
            self._first_token_seconds.observe(record.first_token_s, tags=tags)
        for kind, count in (("prompt", record.prompt_tokens), ("answer", record.completion_tokens)):
            if count:
                self._tokens.inc(count, tags={**tags, "kind": kind})
