"""What was counted between two moments."""

from __future__ import annotations

from collections import defaultdict

from raylens.status.history import Key, Moment
from raylens.status.metrics import GENERATED_TOKENS, HTTP_TOKENS
from raylens.status.quantiles import quantile


class Window:
    """What was counted between two moments, and the gauges of the later one."""

    def __init__(self, begin: Moment, end: Moment) -> None:
        self.end = end
        self._seconds = max(end.time - begin.time, 1e-3)
        self._counts: defaultdict[str, list[tuple[Key, float]]] = defaultdict(list)
        for key, count in end.counts.items():
            self._counts[key[0]].append((key[1:], count - begin.counts.get(key, 0.0)))

    def counts(self, metric: str, model: str | None = None) -> dict[str, float]:
        """Return what a metric counted, by the last label that is kept of it. None means all
        models."""
        found: defaultdict[str, float] = defaultdict(float)
        for labels, count in self._counts[metric]:
            if model is None or labels[0] == model:
                found[labels[-1]] += count
        return found

    def count(self, metric: str, model: str | None = None, label: str = "") -> float:
        """Return what a metric counted with a last label that begins with ``label``."""
        counts = self.counts(metric, model)
        return sum(count for name, count in counts.items() if name.startswith(label))

    def per_second(self, metric: str, model: str | None = None, label: str = "") -> float:
        return self.count(metric, model, label) / self._seconds

    def tokens_per_second(self, model: str | None = None) -> float:
        """Return the rate of answers' tokens. An engine also counts those of jobs; models that run
        elsewhere have none here."""
        of_engines, of_requests = (
            self._by_model(metric, label)
            for metric, label in ((GENERATED_TOKENS, ""), (HTTP_TOKENS, "answer"))
        )
        names = of_engines.keys() | of_requests.keys() if model is None else {model}
        tokens = (max(of_engines.get(name, 0.0), of_requests.get(name, 0.0)) for name in names)
        return sum(tokens) / self._seconds

    def _by_model(self, metric: str, label: str) -> dict[str, float]:
        found: defaultdict[str, float] = defaultdict(float)
        for labels, count in self._counts[metric]:
            if labels[-1].startswith(label):
                found[labels[0]] += count
        return found

    def quantile(self, q: float, metric: str, model: str | None = None) -> float | None:
        return quantile(q, self.counts(metric, model))

    def gauge(self, metric: str, *labels: str) -> float | None:
        return self.end.gauges.get((metric, *labels))
