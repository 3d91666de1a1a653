"""How far one set of answers drifts from another, by the logprobs of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean

from benchmarks.gpu.answers import Said
from raylens.core.types import TokenLogprob


@dataclass(frozen=True)
class Drift:
    kl: float
    """Mean Kullback-Leibler divergence, in nats, over positions behind the same tokens."""
    unlike: float
    """Share of the answers whose tokens differ."""
    first: float | None
    """Where such answers differ first, on the average."""

    def __str__(self) -> str:
        suffix = "" if self.first is None else f", first at token {self.first:.1f}"
        return f"KL {self.kl:.2e} from float32; {self.unlike:.0%} of the answers differ{suffix}"


def drift(pairs: Sequence[tuple[Said, Said]]) -> Drift:
    """Of pairs of greedy answers, exact and rough, to the same request. Behind the first token that
    differs, the two answer different questions: positions up to there count."""
    divergences: list[float] = []
    firsts: list[int] = []
    for exact, rough in pairs:
        for place, (one, other) in enumerate(zip(exact.logprobs, rough.logprobs, strict=False)):
            divergences.append(_divergence(one, other))
            if one.data != other.data:
                firsts.append(place)
                break
    return Drift(fmean(divergences), len(firsts) / len(pairs), fmean(firsts) if firsts else None)


def _divergence(exact: TokenLogprob, rough: TokenLogprob) -> float:
    told = {token.data: token.logprob for token in rough.top}
    return sum(exp(token.logprob) * (token.logprob - told[token.data]) for token in exact.top)
