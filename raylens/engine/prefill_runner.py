"""Prefills prompts into their rows of the KV cache, slice by slice."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from raylens.core.lru import ByteLRU
from raylens.engine.kv_cache import KVCache
from raylens.engine.limits import EngineLimits
from raylens.engine.metrics import EngineMetrics
from raylens.engine.model import Model, ModelOutput, PictureInput, PrefillChunk, Prompt
from raylens.engine.prefix_cache import PrefixCache
from raylens.engine.sequence import GenerationSequence

logger = logging.getLogger(__name__)

IndexedFeatures = list[tuple[int, Tensor]]
"""For each picture, the index of its first image token and its features (tokens, hidden)."""


class PrefillRunner:
    """Runs the prefill of one group of sequences at a time.

    The feature cache and the prefix cache outlive the requests that filled them.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache[GenerationSequence],
        limits: EngineLimits,
        metrics: EngineMetrics,
    ) -> None:
        assert limits.max_prefill_tokens is not None
        self.feature_cache: ByteLRU[bytes, Tensor] = ByteLRU(limits.feature_bytes)
        """Features of pictures (tokens, hidden), by :attr:`PictureInput.key`."""
        self.prefix_cache = PrefixCache(limits.prefix_bytes)
        self._model = model
        self._kv_cache = cache
        self._max_prefill_tokens = limits.max_prefill_tokens
        self._metrics = metrics
        self._slices: Generator[None, None, ModelOutput] | None = None
        """Generator of the current group's remaining slices; None if there is no prefill."""

    @property
    def in_progress(self) -> bool:
        """Whether a group's prefill is in progress."""
        return self._slices is not None

    def run_slice(self, group: list[GenerationSequence]) -> ModelOutput | None:
        """Run the next slice of the group's prefill.

        The last slice returns the output at the last token of each prompt. The others return None.
        """
        if self._slices is None:
            self._slices = self._prefill(group)
        try:
            next(self._slices)
        except StopIteration as finished:
            self._slices = None
            output: ModelOutput = finished.value
            return output
        return None

    def cancel(self, sequences: Iterable[GenerationSequence]) -> None:
        """Drop the current prefill and empty these sequences' rows. The next ``run_slice`` starts
        over."""
        self._slices = None
        for sequence in sequences:
            self._kv_cache.reset_row(sequence)

    def store_prompt(self, sequence: GenerationSequence) -> None:
        """Store the sequence's prompt in the prefix cache, if it is worth it and memory allows."""
        prompt = sequence.prompt
        num_tokens = len(prompt.token_ids)
        if not self.prefix_cache.should_store(prompt, self._model.kv_spec.bytes_per_token):
            return
        try:
            self.prefix_cache.store(prompt, self._kv_cache.copy_prefix(sequence, num_tokens))
        except torch.AcceleratorError:
            raise
        except RuntimeError:  # out of memory, which has no exception class of its own on a CPU
            logger.warning("out of memory; not caching a prompt of %d tokens", num_tokens)

    def evict_features(self, sequence: GenerationSequence) -> None:
        """Remove the features of the prompt's pictures, which may have caused a failure."""
        for picture in sequence.prompt.pictures:
            self.feature_cache.remove(picture.key)

    def clear_feature_and_prefix_caches(self) -> None:
        """Empty the picture-feature and prefix caches (not the KV cache), and return the memory to
        the device."""
        self.feature_cache.clear()
        self.prefix_cache.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prefill(self, group: list[GenerationSequence]) -> Generator[None, None, ModelOutput]:
        """Encode the pictures and prefill the prompts of a group, except what is cached.

        Yields between slices. Returns the output at the last token of each prompt. A prompt that
        needs more than one chunk is in a group of its own (the scheduler ensures this).
        """
        prompts = [sequence.prompt for sequence in group]
        starts = [self._load_prefix(sequence) for sequence in group]
        features = yield from self._encode_pictures(prompts, starts)
        while True:
            ends = [
                self._chunk_end(prompt, start, len(group))
                for prompt, start in zip(prompts, starts, strict=True)
            ]
            chunks = [
                _make_chunk(prompt, start, end, prompt_features)
                for prompt, start, end, prompt_features in zip(
                    prompts, starts, ends, features, strict=True
                )
            ]
            # Advance the lengths first. Decode steps between slices write one token past each row's
            # length, and must not overwrite the chunk.
            for sequence, start, end in zip(group, starts, ends, strict=True):
                self._kv_cache.advance(sequence, end - start)
            output = yield from self._model.prefill(
                chunks, lambda: [self._kv_cache.row_of(s) for s in group], self._max_prefill_tokens
            )
            starts = ends
            if all(end == len(prompt.token_ids) for end, prompt in zip(ends, prompts, strict=True)):
                return output
            yield

    def _load_prefix(self, sequence: GenerationSequence) -> int:
        """Copy the longest cached prefix to the sequence's row, and return its number of tokens."""
        prefix = self.prefix_cache.find(sequence.prompt)
        num_cached = 0 if prefix is None else prefix.shape[3]
        sequence.num_cached_tokens = num_cached
        num_missing = len(sequence.prompt.token_ids) - num_cached
        self._metrics.record_cache_lookup("prefix", num_cached, num_missing)
        if prefix is not None:
            self._kv_cache.load_prefix(sequence, prefix)
        return num_cached

    def _chunk_end(self, prompt: Prompt, start: int, group_size: int) -> int:
        """Return the end of the chunk that begins at ``start``.

        In a group of several prompts, each fits in one chunk. A bidirectional prefix is never
        split.
        """
        if group_size > 1:
            return len(prompt.token_ids)
        end = max(start + self._max_prefill_tokens, prompt.bidirectional_prefix_len)
        return min(end, len(prompt.token_ids))

    def _encode_pictures(
        self, prompts: list[Prompt], starts: list[int]
    ) -> Generator[None, None, list[IndexedFeatures]]:
        """Return the features of each prompt's pictures, from the cache or the vision encoder.

        Skips pictures that lie entirely in the cached prefix, before ``starts``.
        """
        pictures = [
            _pictures_after(prompt, start) for prompt, start in zip(prompts, starts, strict=True)
        ]
        features_by_key: dict[bytes, Tensor] = {}
        missing: dict[bytes, PictureInput] = {}
        for _, picture in chain.from_iterable(pictures):
            cached_features = self.feature_cache.get(picture.key)
            if cached_features is None:
                missing[picture.key] = picture
            else:
                features_by_key[picture.key] = cached_features
        self._metrics.record_cache_lookup("features", len(features_by_key), len(missing))
        if missing:
            encoded = yield from self._model.encode(list(missing.values()))
            features_by_key.update(zip(missing, encoded, strict=True))
            for key in missing:
                features = features_by_key[key]
                self.feature_cache.put(key, features, features.nbytes)
            yield
        return [
            [(index, features_by_key[picture.key]) for index, picture in prompt_pictures]
            for prompt_pictures in pictures
        ]


def _pictures_after(prompt: Prompt, start: int) -> list[tuple[int, PictureInput]]:
    """Return each picture that ends after token ``start``, and the index of its first token."""
    return [
        (index, picture)
        for index, picture in zip(prompt.image_starts, prompt.pictures, strict=True)
        if index + picture.num_tokens > start
    ]


def _make_chunk(prompt: Prompt, start: int, end: int, features: IndexedFeatures) -> PrefillChunk:
    """Return the prompt's tokens from ``start`` to ``end``."""
    chunk_features = []
    for index, picture_features in features:
        first = max(index, start)
        stop = min(index + len(picture_features), end)
        if first < stop:
            chunk_features.append((first - start, picture_features[first - index : stop - index]))
    if prompt.positions is None:
        positions = np.arange(start, end)[None]
    else:
        positions = prompt.positions[:, start:end]
    return PrefillChunk(
        start,
        prompt.token_ids[start:end],
        chunk_features,
        positions,
        prompt.bidirectional_prefix_len,
    )
