"""Drift of low-precision answers from exact ones, by the logprobs of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean

from benchmarks.gpu.answers import Reply
from raylens.core.types import TokenLogprob


@dataclass(frozen=True)
class Drift:
    """Distance between two sets of answers."""

    kl: float
    """Mean Kullback-Leibler divergence, in nats, over positions with the same preceding tokens."""
    unlike: float
    """Share of the answers that differ in a token."""
    first: float | None
    """Mean position of the first differing token; None if no answer differs."""

    def __str__(self) -> str:
        suffix = "" if self.first is None else f", first at token {self.first:.1f}"
        return f"KL {self.kl:.2e} from float32; {self.unlike:.0%} of the answers differ{suffix}"


def measure_drift(pairs: Sequence[tuple[Reply, Reply]]) -> Drift:
    """Compare pairs of greedy answers, exact and rough, to the same request.

    Positions count up to the first differing token. After it, the two answers continue different
    texts and their logprobs are not comparable.
    """
    divergences: list[float] = []
    positions: list[int] = []
    for exact, rough in pairs:
        tokens = zip(exact.logprobs, rough.logprobs, strict=False)
        for position, (exact_token, rough_token) in enumerate(tokens):
            divergences.append(_divergence(exact_token, rough_token))
            if exact_token.data != rough_token.data:
                positions.append(position)
                break
    first = fmean(positions) if positions else None
    return Drift(fmean(divergences), len(positions) / len(pairs), first)


def _divergence(exact: TokenLogprob, rough: TokenLogprob) -> float:
    """Return the KL divergence of the two distributions over the vocabulary."""
    rough_logprobs = {token.data: token.logprob for token in rough.top}
    return sum(
        exp(token.logprob) * (token.logprob - rough_logprobs[token.data]) for token in exact.top
    )
