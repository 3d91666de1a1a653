"""Reads prompts into their rows of the cache, in slices, and keeps what later ones may begin with."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import Model, ModelOutput, PictureInput, PrefillChunk, Prompt
from raylens.engine.reuse import ByteLRU, PrefixCache
from raylens.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class PrefillRunner:
    """``features`` of pictures and ``prefixes`` of prompts outlive the requests that made them."""

    def __init__(
        self, model: Model, cache: KVCache[Sequence], limits: EngineLimits, metrics: EngineMetrics
    ) -> None:
        assert limits.prefill_tokens is not None
        self.features: ByteLRU[bytes, Tensor] = ByteLRU(limits.feature_bytes)
        self.prefixes = PrefixCache(limits.prefix_bytes)
        self._model = model
        self._cache = cache
        self._tokens = limits.prefill_tokens
        self._metrics = metrics

    def read(self, group: list[Sequence]) -> Generator[None, None, ModelOutput]:
        """Encodes the pictures and reads the prompts of a group together, but for what is known
        from earlier; yields between slices, and returns the scores of the first tokens. Prompts
        that take more than a slice stand alone."""
        starts = [self._begin(sequence) for sequence in group]
        features = yield from self._features([s.prompt for s in group], starts)
        while True:
            prompts = [sequence.prompt for sequence in group]
            ends = [
                self._end(prompt, start, len(group))
                for prompt, start in zip(prompts, starts, strict=True)
            ]
            parts = [
                _part(prompt, start, end, shown)
                for prompt, start, end, shown in zip(prompts, starts, ends, features, strict=True)
            ]
            for sequence, start, end in zip(group, starts, ends, strict=True):
                # Told before it is true: what is decoded along meanwhile is written behind what
                # this part will fill.
                self._cache.advance(sequence, end - start)
            scores = yield from self._model.prefill(
                parts, lambda: [self._cache.row(s) for s in group], self._tokens
            )
            starts = ends
            if all(end == len(prompt.token_ids) for end, prompt in zip(ends, prompts, strict=True)):
                return scores
            yield

    def keep(self, sequence: Sequence) -> None:
        """Keeps what was read of a prompt for others that begin alike; a copy for which there is no
        memory is done without."""
        prompt = sequence.prompt
        if self.prefixes.wants(prompt, self._model.kv_shape.bytes_per_token):
            try:
                self.prefixes.keep(prompt, self._cache.read(sequence, len(prompt.token_ids)))
            except torch.AcceleratorError:
                raise
            except RuntimeError:  # no memory, which on a CPU has no class of its own
                logger.warning(
                    "there is no memory to keep a prompt of %d tokens", len(prompt.token_ids)
                )

    def drop(self, sequence: Sequence) -> None:
        """Gives up the features of a prompt's pictures: they may have spoilt what was made of them."""
        for picture in sequence.prompt.pictures:
            self.features.drop(picture.key)

    def forget(self) -> None:
        """Gives up what is kept, if memory is short."""
        self.features.clear()
        self.prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _begin(self, sequence: Sequence) -> int:
        """Takes over the known beginning of a prompt; its tokens."""
        known = self.prefixes.find(sequence.prompt)
        start = 0 if known is None else known.shape[3]
        self._metrics.reuse("prefix", start, len(sequence.prompt.token_ids) - start)
        if known is not None:
            self._cache.write(sequence, known)
        return start

    def _end(self, prompt: Prompt, start: int, prompts: int) -> int:
        """Where the part ends that begins at ``start``."""
        if prompts > 1:
            return len(prompt.token_ids)
        return min(
            max(start + self._tokens, prompt.bidirectional_prefix_len), len(prompt.token_ids)
        )

    def _features(
        self, prompts: list[Prompt], starts: list[int]
    ) -> Generator[None, None, list[list[tuple[int, Tensor]]]]:
        """For each prompt (place, features) of the pictures that end behind its start, from the
        cache or from the vision tower."""
        shown = [
            [
                (at, picture)
                for at, picture in zip(prompt.image_at, prompt.pictures, strict=True)
                if at + picture.tokens > start
            ]
            for prompt, start in zip(prompts, starts, strict=True)
        ]
        known: dict[bytes, Tensor] = {}
        missing: dict[bytes, PictureInput] = {}
        for _, picture in chain.from_iterable(shown):
            features = self.features.get(picture.key)
            if features is None:
                missing[picture.key] = picture
            else:
                known[picture.key] = features
        self._metrics.reuse("features", len(known), len(missing))
        if missing:
            encoded = yield from self._model.encode(list(missing.values()))
            known.update(zip(missing, encoded, strict=True))
            for key in missing:
                self.features.put(key, known[key], known[key].nbytes)
            yield
        return [[(at, known[picture.key]) for at, picture in pictures] for pictures in shown]


def _part(
    prompt: Prompt, start: int, end: int, features: Iterable[tuple[int, Tensor]]
) -> PrefillChunk:
    """The prompt's tokens from ``start`` to ``end``."""
    parts = []
    for at, shown in features:
        first, last = max(at, start), min(at + len(shown), end)
        if first < last:
            parts.append((first - start, shown[first - at : last - at]))
    positions = (
        np.arange(start, end)[None] if prompt.positions is None else prompt.positions[:, start:end]
    )
    return PrefillChunk(
        start, prompt.token_ids[start:end], parts, positions, prompt.bidirectional_prefix_len
    )
