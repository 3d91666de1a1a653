"""The metrics of the last minutes, from what each node exports again and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from raylens.status.exposition import parse_series, series_values
from raylens.status.metrics import METRICS, NO_MODEL, NO_WORK

KEPT_S = 15 * 60.0
"""Age up to which moments are kept."""
Key = tuple[str, ...]
"""A metric's name, and the values of the labels that are kept of it."""


@dataclass(frozen=True)
class Moment:
    """What all nodes together exported at a time."""

    time: float
    """Seconds since the epoch."""
    nodes: int
    answering: int
    """Nodes whose metrics could be read."""
    counts: Mapping[Key, float]
    """What counters have counted since the history began."""
    gauges: Mapping[Key, float]


@dataclass
class _Node:
    counters: dict[str, float] = field(default_factory=dict)
    """The last values of its counters, by series."""
    was_read: bool = False


class History:
    """Adds up the series of all processes and nodes, and keeps the moments of the last minutes.

    A counter counts from one process's start to its end. What is added up is therefore how much
    each series has grown, as Prometheus's ``increase`` does, and not the counters themselves. The
    first page of a node is where its growth begins.
    """

    def __init__(self, application: str) -> None:
        """``application`` is the name of ours: Ray may run others."""
        self._application = application
        self._moments: deque[Moment] = deque()
        self._nodes: dict[str, _Node] = {}
        self._counts: dict[Key, float] = {}
        self._keys: dict[str, Key | None] = {}
        """Of the series that were exported last; None if a series doesn't count."""

    @property
    def moments(self) -> list[Moment]:
        return list(self._moments)

    def add(self, time: float, pages: Mapping[str, str | None]) -> None:
        """Add what each node exports at a time: its page, or None if it can't be read."""
        self._nodes = {name: self._nodes.get(name, _Node()) for name in pages}
        known, self._keys = self._keys, {}
        gauges: dict[Key, float] = {}
        for name, page in pages.items():
            if page is not None:
                self._read(self._nodes[name], page, known, gauges)
        answering = sum(page is not None for page in pages.values())
        if self._moments and self._moments[-1].time >= time:  # somebody has set the clock back
            self._moments.clear()
        while self._moments and self._moments[0].time < time - KEPT_S:
            self._moments.popleft()
        self._moments.append(Moment(time, len(pages), answering, dict(self._counts), gauges))

    def _read(
        self, node: _Node, page: str, known: Mapping[str, Key | None], gauges: dict[Key, float]
    ) -> None:
        counters: dict[str, float] = {}
        for series, key, value in self._own_series(page, known):
            metric = METRICS[key[0]]
            if metric.is_counter:
                counters[series] = value
                if node.was_read:
                    growth = _growth(node.counters.get(series, 0.0), value)
                    self._counts[key] = self._counts.get(key, 0.0) + growth
            elif metric.is_greatest:
                gauges[key] = max(gauges.get(key, value), value)
            else:
                gauges[key] = gauges.get(key, 0.0) + value
        node.counters, node.was_read = counters, True

    def _own_series(
        self, page: str, known: Mapping[str, Key | None]
    ) -> Iterator[tuple[str, Key, float]]:
        for series, value in series_values(page, METRICS):
            key = known[series] if series in known else self._key_of(series)
            self._keys[series] = key
            if key is not None:
                yield series, key, value

    def _key_of(self, series: str) -> Key | None:
        name, labels = parse_series(series)
        metric = METRICS[name]
        is_ours = labels.get("application", self._application) == self._application
        if not is_ours or labels.get("method") in NO_WORK:
            return None
        if metric.needs_model and labels.get("model") == NO_MODEL:
            return None
        return (name, *(labels.get(label, "") for label in metric.by))


def _growth(before: float, now: float) -> float:
    return now - before if now >= before else now
