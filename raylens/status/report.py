"""The figures of the last minutes, as lists over time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from raylens.status import metrics as m
from raylens.status.history import Moment
from raylens.status.quantiles import mean_of_integers
from raylens.status.window import Window

WINDOW_S = 60.0
"""Rates, means and quantiles at a time are those of this long before it."""
TOLERANCE_S = 1.0
"""Moments aren't exactly as far apart as they should be."""
DIGITS = 4
INGRESS = "Ingress"
NOTHING = Window(Moment(0.0, 0, 0, {}, {}), Moment(0.0, 0, 0, {}, {}))
"""A window in which nothing was counted."""
Figures = dict[str, float | None]
Series = dict[str, list[float | None]]


@dataclass(frozen=True)
class Report:
    """Lists are parallel to ``times``. What isn't known of a time is None."""

    times: list[float]
    """Seconds since the epoch. The newest is the last."""
    nodes: int
    """Nodes that are alive."""
    answering: int
    """Nodes whose metrics could be read the last time."""
    server: Series
    models: dict[str, Series]
    jobs: Series
    totals: Figures
    """What was counted in the minutes before the last of ``times``, as far as the lists reach."""
    model_totals: dict[str, Figures]


def make_report(moments: Sequence[Moment], models: Iterable[str]) -> Report:
    """Return the figures of each moment but the first, where counting begins."""
    windows = [Window(_begin(moments, i), moments[i]) for i in range(1, len(moments))]
    whole = Window(moments[0], moments[-1]) if windows else NOTHING
    names = list(models)
    return Report(
        times=[round(window.end.time, 1) for window in windows],
        nodes=moments[-1].nodes if moments else 0,
        answering=moments[-1].answering if moments else 0,
        server=_over_time(windows, _server_figures),
        models={name: _over_time(windows, partial(_model_figures, model=name)) for name in names},
        jobs=_over_time(windows, _job_figures),
        totals=_totals(whole),
        model_totals={name: _traffic_totals(whole, name) for name in names},
    )


def _begin(moments: Sequence[Moment], index: int) -> Moment:
    """Return the moment ``WINDOW_S`` before another one, or the oldest one."""
    earliest = moments[index].time - WINDOW_S - TOLERANCE_S
    found = bisect_left(moments, earliest, 0, index, key=lambda moment: moment.time)
    return moments[min(found, index - 1)]


def _over_time(windows: Sequence[Window], figures: Callable[[Window], Figures]) -> Series:
    """Return the figures of all windows as one list for each figure."""
    series: Series = {name: [] for name in figures(NOTHING)}
    for window in windows:
        for name, value in figures(window).items():
            series[name].append(_rounded(value))
    return series


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _traffic(window: Window, model: str | None) -> Figures:
    """Return the figures of requests. The times are of those that reached a model."""
    return {
        "requests_per_s": window.per_second(m.REQUESTS, model),
        "errors_per_s": window.per_second(m.REQUESTS, model, "5"),
        "refusals_per_s": window.per_second(m.REQUESTS, model, "4"),
        "latency_p50_s": window.quantile(0.5, m.SECONDS, model),
        "latency_p95_s": window.quantile(0.95, m.SECONDS, model),
        "first_token_p50_s": window.quantile(0.5, m.FIRST_TOKEN_SECONDS, model),
        "first_token_p95_s": window.quantile(0.95, m.FIRST_TOKEN_SECONDS, model),
        "tokens_per_s": window.tokens_per_second(model),
    }


def _server_figures(window: Window) -> Figures:
    return _traffic(window, None) | {
        "in_flight": window.gauge(m.CALLS, INGRESS),
        "pictures_waiting": window.gauge(m.PICTURES_WAITING),
        "sessions": window.gauge(m.SESSIONS),
    }


def _model_figures(window: Window, model: str) -> Figures:
    return _traffic(window, model) | {
        "waiting": window.gauge(m.WAITING, model),
        "running": window.gauge(m.RUNNING, model),
        "load": window.gauge(m.LOAD, model),
        "batch_size": mean_of_integers(window.counts(m.BATCH_SIZE, model)),
        "kv_cache": _share(window.gauge(m.KV_BYTES, model), window.gauge(m.KV_LIMIT_BYTES, model)),
        "picture_hits": _hits(window, model, "features"),
        "prefix_hits": _hits(window, model, "prefix"),
        "memory_bytes": window.gauge(m.MEMORY_BYTES, model, "allocated"),
        "memory_share_bytes": window.gauge(m.MEMORY_BYTES, model, "share"),
    }


def _job_figures(window: Window) -> Figures:
    return {
        "queued": window.gauge(m.JOBS, "queued"),
        "running": window.gauge(m.JOBS, "running"),
        "failed": window.gauge(m.JOBS, "failed"),
        "oldest_wait_s": window.gauge(m.JOBS_WAIT_SECONDS),
        "ended_per_s": window.per_second(m.JOBS_ENDED),
    }


def _totals(window: Window) -> Figures:
    return _traffic_totals(window, None) | {
        "jobs_succeeded": round(window.count(m.JOBS_ENDED, label="succeeded")),
        "jobs_failed": round(window.count(m.JOBS_ENDED, label="failed")),
    }


def _traffic_totals(window: Window, model: str | None) -> Figures:
    return {
        "requests": round(window.count(m.REQUESTS, model)),
        "errors": round(window.count(m.REQUESTS, model, "5")),
        "refusals": round(window.count(m.REQUESTS, model, "4")),
        "latency_p50_s": _rounded(window.quantile(0.5, m.SECONDS, model)),
        "latency_p95_s": _rounded(window.quantile(0.95, m.SECONDS, model)),
        "prompt_tokens": round(window.count(m.HTTP_TOKENS, model, "prompt")),
        "answer_tokens": round(window.count(m.HTTP_TOKENS, model, "answer")),
    }


def _hits(window: Window, model: str, cache: str) -> float | None:
    hits = window.count(m.CACHE_HITS, model, cache)
    return _share(hits, hits + window.count(m.CACHE_MISSES, model, cache))


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
