"""The next token of each sequence: chosen on the device, kept there for the next step, and on its
way to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raylens.engine.attempt import attempt
from raylens.engine.device_sampling import DeviceSampler
from raylens.engine.logprobs import measure
from raylens.engine.model import NO_TOKEN, Model, ModelOutput, TokenPolicy
from raylens.engine.sampling import HostSampler, NonFiniteLogits
from raylens.engine.sequence import Sequence
from raylens.engine.transfer import Download, upload

Logprob = tuple[float, list[float], list[int]]
"""Of a token, and of the most likely ones with their ids."""


@dataclass(eq=False)
class PendingTokens:
    """The next tokens of some sequences, on their way to the host."""

    sequences: list[Sequence]
    download: Download
    """int64 (sequences,), what the rows' ``finite`` is, and what was measured of ``logprob_rows``."""
    failures: dict[int, Exception]
    logprob_rows: list[int]
    decoded: bool
    """By a decode step; else these are first tokens."""
    deferred: bool = False
    """They weren't there when the host looked, and are waited for in the next step."""

    def wait(self) -> list[int | Exception | None]:
        """Each sequence's token, None if it has no room for more, or how it failed."""
        ids, finite, *_ = self.download.wait()
        tokens: list[int | Exception | None] = [
            None if token == NO_TOKEN else token for token in ids.tolist()
        ]
        for row in torch.nonzero(~finite).flatten().tolist():
            tokens[row] = NonFiniteLogits()
        for row, error in self.failures.items():
            tokens[row] = error
        return tokens

    def logprobs(self) -> dict[int, Logprob]:
        """By row, of those that want them."""
        _, _, *measured = self.download.wait()
        if not self.logprob_rows:
            return {}
        return dict(
            zip(
                self.logprob_rows,
                zip(*(part.tolist() for part in measured), strict=True),
                strict=True,
            )
        )


class NextTokens:
    """Chooses tokens, and keeps the newest one of each sequence. ``forget`` frees memory after a
    failure."""

    def __init__(self, model: Model, max_batch_size: int, forget: Callable[[], None]) -> None:
        self._model = model
        self._forget = forget
        self._nobody = max_batch_size
        self._newest = torch.zeros(max_batch_size + 1, dtype=torch.int64, device=model.device)
        """By slot; the last one is nobody's."""
        self._sampler = (
            HostSampler()
            if self._newest.device.type == "cpu"
            else DeviceSampler(max_batch_size, model.vocabulary, model.device)
        )

    def begin(self, sequence: Sequence) -> None:
        """An answer begins in the sequence's slot."""
        self._sampler.begin(sequence.slot, sequence.sampler)

    def newest(self, sequences: list[Sequence | None]) -> Tensor:
        """The newest token of each, int64 (sequences,), on the device; any token for None."""
        return self._newest[
            self._upload([self._nobody if s is None else s.slot for s in sequences])
        ]

    def choose(
        self, sequences: list[Sequence], scores: ModelOutput, decoded: bool
    ) -> PendingTokens:
        """Chooses each sequence's next token by its row of ``scores``."""
        policy, slots = self._model.token_policy, [sequence.slot for sequence in sequences]
        logits = scores.logits if policy is None else policy.mask_logits(scores.logits, sequences)
        choice = self._sampler.choose(logits, [sequence.sampler for sequence in sequences], slots)
        tokens, failures = choice.tokens, dict(choice.failures)
        if policy is not None:
            tokens = self._settle(policy, tokens, failures, scores, sequences)
        self._newest[self._upload(slots)] = tokens
        finite = (
            torch.ones_like(tokens, dtype=torch.bool) if choice.finite is None else choice.finite
        )
        rows = [
            row for row, sequence in enumerate(sequences) if sequence.params.logprobs is not None
        ]
        download = Download(tokens, finite, *self._measured(scores, tokens, sequences, rows))
        return PendingTokens(sequences, download, failures, rows, decoded)

    def _measured(
        self, scores: ModelOutput, tokens: Tensor, sequences: list[Sequence], rows: list[int]
    ) -> tuple[Tensor, ...]:
        """The logprobs of the rows that want them."""
        if not rows:
            return ()
        most = max(sequences[row].params.logprobs or 0 for row in rows)
        index = self._upload(rows)
        return measure(
            scores.logits[index], tokens[index].clamp(0, self._model.vocabulary - 1), most
        )

    def _settle(
        self,
        token_policy: TokenPolicy,
        tokens: Tensor,
        failures: dict[int, Exception],
        scores: ModelOutput,
        sequences: list[Sequence],
    ) -> Tensor:
        """What is next in each answer; adds to ``failures`` the rows of which the policy can't
        tell."""
        settled = attempt(partial(token_policy.resolve_tokens, tokens, scores, sequences))
        if not isinstance(settled, Exception):
            return settled
        self._forget()  # and row by row, so that only the one that breaks it fails
        alone = []
        for row, sequence in enumerate(sequences):
            token = tokens[row : row + 1]
            one = attempt(
                partial(token_policy.resolve_tokens, token, scores.rows([row]), [sequence])
            )
            if isinstance(one, Exception):
                failures.setdefault(row, one)
            alone.append(token if isinstance(one, Exception) else one)
        return torch.cat(alone)

    def _upload(self, numbers: list[int]) -> Tensor:
        return upload(numbers, self._model.device)
