"""Reads prompts into their rows of the cache, in slices, and keeps what later ones may begin with."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import Limits
from raylens.engine.metrics import Metrics
from raylens.engine.model import Model, Part, PictureInput, Prompt, Scores
from raylens.engine.reuse import ByteLRU, PrefixCache
from raylens.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Reader:
    """``features`` of pictures and ``prefixes`` of prompts outlive the requests that made them."""

    def __init__(self, model: Model, cache: KVCache[Sequence], limits: Limits, metrics: Metrics) -> None:
        self.features: ByteLRU[bytes, Tensor] = ByteLRU(limits.feature_bytes)
        self.prefixes = PrefixCache(limits.prefix_bytes)
        self._model = model
        self._cache = cache
        self._limits = limits
        self._metrics = metrics

    def read(self, sequence: Sequence) -> Generator[None, None, Scores]:
        """Encodes the pictures and reads the prompt, but for what is known from earlier; yields between slices, and
        returns the first token's scores."""
        prompt = sequence.prompt
        known = self.prefixes.find(prompt)
        start = 0 if known is None else known.shape[3]
        self._metrics.reuse("prefix", start, len(prompt.token_ids) - start)
        if known is not None:
            self._cache.write(sequence, known)
        features = yield from self._features(prompt, start)
        positions = prompt.positions if prompt.positions is not None else np.arange(len(prompt.token_ids))[None]
        while True:
            end = min(max(start + self._limits.prefill_tokens, prompt.whole), len(prompt.token_ids))
            part = _part(prompt, start, end, features, positions)
            # Told before it is true: what is decoded along meanwhile is written behind what this part will fill.
            self._cache.advance(sequence, end - start)
            scores = yield from self._model.prefill(
                part, partial(self._cache.row, sequence), self._limits.prefill_tokens
            )
            start = end
            if start == len(prompt.token_ids):
                break
            yield
        self._keep(sequence, scores.logits)
        return scores

    def forget(self) -> None:
        """Gives up what is kept, where memory is short."""
        self.features.clear()
        self.prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _keep(self, sequence: Sequence, logits: Tensor) -> None:
        """Keeps what was read for others that begin alike; a copy for which there is no memory is done without."""
        prompt = sequence.prompt
        if not torch.isfinite(logits).all():
            for picture in prompt.pictures:
                self.features.drop(picture.key)
        elif self.prefixes.wants(prompt, self._model.kv_shape.bytes_per_token):
            try:
                self.prefixes.keep(prompt, self._cache.read(sequence, len(prompt.token_ids)))
            except torch.AcceleratorError:
                raise
            except RuntimeError:  # no memory, which on a CPU has no class of its own
                logger.warning("there is no memory to keep a prompt of %d tokens", len(prompt.token_ids))

    def _features(self, prompt: Prompt, start: int) -> Generator[None, None, list[tuple[int, Tensor]]]:
        """(place, features) of the pictures that end behind ``start``, from the cache or from the vision tower."""
        shown = [
            (at, picture)
            for at, picture in zip(prompt.image_at, prompt.pictures, strict=True)
            if at + picture.tokens > start
        ]
        known: dict[bytes, Tensor] = {}
        missing: dict[bytes, PictureInput] = {}
        for _, picture in shown:
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
        return [(at, known[picture.key]) for at, picture in shown]


def _part(
    prompt: Prompt,
    start: int,
    end: int,
    features: Iterable[tuple[int, Tensor]],
    positions: NDArray[np.int64],
) -> Part:
    """The prompt's tokens from ``start`` to ``end``."""
    parts = []
    for at, shown in features:
        first, last = max(at, start), min(at + len(shown), end)
        if first < last:
            parts.append((first - start, shown[first - at : last - at]))
    return Part(start, prompt.token_ids[start:end], parts, positions[:, start:end], prompt.whole)
