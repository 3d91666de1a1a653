"""The shapes of query that the dashboard is made of.

``matchers`` is a list of label matchers, such as ``stage="queue"``; ``by`` are the labels that the
result keeps. Every query asks for the clusters that are selected at the top of the dashboard.
"""

from __future__ import annotations

CLUSTER = 'ray_io_cluster=~"$cluster"'
MODEL = 'model=~"$model"'
RANGE = "[$__rate_interval]"


def select(metric: str, matchers: str = "") -> str:
    """Return a selector of the metric's series."""
    chosen = f"{CLUSTER}, {matchers}" if matchers else CLUSTER
    return f"{metric}{{{chosen}}}"


def aggregate(function: str, by: str, expression: str) -> str:
    grouping = f" by ({by})" if by else ""
    return f"{function}{grouping} ({expression})"


def total(metric: str, by: str = "", matchers: str = "") -> str:
    """Return the sum of a gauge."""
    return aggregate("sum", by, select(metric, matchers))


def greatest(metric: str, by: str = "", matchers: str = "") -> str:
    """Return the maximum of a gauge."""
    return aggregate("max", by, select(metric, matchers))


def per_second(counter: str, by: str = "", matchers: str = "") -> str:
    """Return the rate of a counter."""
    return aggregate("sum", by, f"rate({select(counter, matchers)}{RANGE})")


def share(counter: str, part: str, by: str = "", matchers: str = "") -> str:
    """Return which fraction of a counter's growth has the labels ``part``.

    The part may have no series yet. It then counts as 0. A counter that doesn't grow has no share.
    """
    whole = per_second(counter, by, matchers)
    matching = per_second(counter, by, f"{matchers}, {part}" if matchers else part)
    return f"(({matching}) or 0 * {whole}) / ({whole} > 0)"


def hit_rate(cache: str, matchers: str) -> str:
    """Return the hits of a cache over its lookups. It may have had none of either kind yet."""
    labels = f'{matchers}, cache="{cache}"'
    hits, misses = (
        per_second(f"ray_raylens_engine_cache_{kind}_total", "model", labels)
        for kind in ("hits", "misses")
    )
    all_hits, all_misses = f"({hits} or 0 * {misses})", f"({misses} or 0 * {hits})"
    return f"{all_hits} / ({all_hits} + {all_misses} > 0)"


def quantile(q: float, histogram: str, by: str = "", matchers: str = "") -> str:
    """Return a quantile of a histogram. ``histogram`` is its name without ``_bucket``."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, {per_second(f'{histogram}_bucket', labels, matchers)})"


def mean(histogram: str, by: str = "", matchers: str = "") -> str:
    """Return the mean of a histogram. It is approximate: Ray adds up the middles of the buckets."""
    sums, counts = (per_second(f"{histogram}_{part}", by, matchers) for part in ("sum", "count"))
    return f"{sums} / ({counts} > 0)"
