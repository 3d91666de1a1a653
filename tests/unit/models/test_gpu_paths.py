"""The code paths of a GPU, run on a CPU with stand-ins for flash attention and for CUDA graphs:
answers stay exact."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration, SmolVLMForConditionalGeneration

from models import attention, packed
from models.attention import AttentionBackend
from models.flash import SequenceBounds
from models.graphs import GraphCache, ModelGraphs
from models.moondream import model as moondream
from models.packed import (
    CacheAddresses,
    PackedChunks,
    PaddedSizes,
    are_whole_prompts,
    can_be_packed,
)
from models.qwen2_5_vl import model as qwen2_5_vl
from models.qwen2_5_vl import verify as qwen2_5_vl_verify
from models.rope import RopeParameters
from models.smolvlm import model as smolvlm
from models.smolvlm import verify as smolvlm_verify
from raylens.engine.limits import EngineLimits
from raylens.engine.model import KVRows, KVSpec, PrefillChunk
from testing import recorded_moondream
from testing.checkpoints import MOONDREAMS, random_moondream, random_qwen2_5_vl, random_smolvlm
from testing.exactness import assert_matches_generate, run_in_random_batches
from tests.unit.models.test_graphs import Recorder

LIMITS = EngineLimits(
    max_batch_size=6, max_prefill_tokens=1200, max_prefill_batch_size=6, async_scheduling=True
)


def plain_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: SequenceBounds,
    keys: SequenceBounds,
    causal: bool = False,
    seqused: Tensor | None = None,
) -> Tensor:
    """Compute ``flash`` one sequence at a time. Queries outside of all sequences get NaN."""
    output = torch.full_like(query, torch.nan)
    query_spans = list(pairwise(queries.cu_seqlens.tolist()))
    key_spans = list(pairwise(keys.cu_seqlens.tolist()))
    queries_per_key = query.shape[1] // key.shape[1]
    for row, ((first, last), (key_first, key_last)) in enumerate(
        zip(query_spans, key_spans, strict=True)
    ):
        if seqused is not None:
            key_last = key_first + int(seqused[row])
        query_len = last - first
        key_len = key_last - key_first
        assert query_len <= queries.max_seqlen
        assert key_len <= keys.max_seqlen
        if not query_len:
            continue
        mask = torch.ones(query_len, key_len, dtype=torch.bool)
        mask = mask.tril(key_len - query_len) if causal else mask
        attended = F.scaled_dot_product_attention(
            query[first:last].transpose(0, 1),
            key[key_first:key_last].repeat_interleave(queries_per_key, 1).transpose(0, 1),
            value[key_first:key_last].repeat_interleave(queries_per_key, 1).transpose(0, 1),
            attn_mask=mask,
        )
        output[first:last] = attended.transpose(0, 1)
    return output


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Return a function that lets a model take a GPU's code paths.

    It returns the recorder of the model's prefill graphs. With ``has_flash``, the model takes the
    paths of half precision.
    """
    monkeypatch.setattr(attention, "flash_attention", plain_flash)
    monkeypatch.setattr(packed, "flash_attention", plain_flash)

    def change(model: Any, has_flash: bool) -> Recorder:
        recorder = Recorder()
        model._decoder._attention.is_on_gpu = True
        model._decoder._attention.has_flash = has_flash
        model._decoder._graphs = ModelGraphs(GraphCache(Recorder()), GraphCache(recorder))
        return recorder

    return change


@pytest.mark.parametrize("has_flash", [True, False], ids=["flash", "causal"])
def test_smolvlm_answers_equal_generate_alone(as_on_a_gpu, tmp_path: Path, has_flash: bool) -> None:
    model = smolvlm.load(str(random_smolvlm(tmp_path, scale=3.0)))
    recorder = as_on_a_gpu(model, has_flash)
    finished = run_in_random_batches(model, random.Random(4), 60, limits=LIMITS)
    reference = SmolVLMForConditionalGeneration.from_pretrained(tmp_path)
    assert_matches_generate(finished, reference, partial(smolvlm_verify.generate_inputs, model))
    assert (recorder.replays > 0) is has_flash


@pytest.mark.parametrize("has_flash", [True, False], ids=["flash", "causal"])
def test_qwen2_5_vl_answers_equal_generate_alone(
    as_on_a_gpu, tmp_path: Path, has_flash: bool
) -> None:
    model = qwen2_5_vl.load(str(random_qwen2_5_vl(tmp_path, scale=3.0)))
    recorder = as_on_a_gpu(model, has_flash)
    model._batch_patches = 10**6
    finished = run_in_random_batches(model, random.Random(5), 60, videos=True, limits=LIMITS)
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert_matches_generate(finished, reference, partial(qwen2_5_vl_verify.generate_inputs, model))
    assert (recorder.replays > 0) is has_flash


@pytest.mark.parametrize("has_flash", [True, False], ids=["flash", "causal"])
@pytest.mark.parametrize("name", list(MOONDREAMS))
def test_moondream_answers_equal_the_reference(
    as_on_a_gpu, tmp_path: Path, name: str, has_flash: bool
) -> None:
    model = moondream.load(str(random_moondream(tmp_path, MOONDREAMS[name])))
    recorder = as_on_a_gpu(model, has_flash)
    recorded = recorded_moondream.RECORDED[name]["answers"]
    requests = [recorded_moondream.recorded_sequences(model, record) for record in recorded]
    recorded_moondream.run(model, requests, limits=LIMITS)
    for (sequence,), record in zip(requests, recorded, strict=True):
        answer = recorded_moondream.answer(model, sequence)
        assert answer == recorded_moondream.expected_answer(record), record["kind"]
    assert (recorder.replays > 0) is has_flash


@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 6, 3), (8, 6, 3)])
@pytest.mark.parametrize("prefix_lens", [(0, 0, 0), (5, 0, 3), (5, 6, 3)])
def test_packed_chunks_attend_to_their_rows_as_each_does_alone(
    monkeypatch: pytest.MonkeyPatch, starts: tuple[int, ...], prefix_lens: tuple[int, ...]
) -> None:
    """``prefix_lens``: lengths of the prompts' bidirectional prefixes; ``starts``: tokens of each
    prompt that are in the cache."""
    monkeypatch.setattr(packed, "flash_attention", plain_flash)
    lengths = (9, 1, 12)
    row_indices = (2, 0, 1)
    tokens = sum(lengths)
    padded_tokens = 64
    capacity = 32
    prefix_lens = tuple(  # a chunk with a token of the prefix needs all of it, and a causal token
        prefix_len if start >= prefix_len or prefix_len < length else 0
        for start, prefix_len, length in zip(starts, prefix_lens, lengths, strict=True)
    )
    chunks = [
        PrefillChunk(start, range(length), [], np.arange(start, start + length)[None], prefix_len)
        for start, length, prefix_len in zip(starts, lengths, prefix_lens, strict=True)
    ]
    assert can_be_packed(chunks)
    torch.manual_seed(0)
    arena = torch.randn(2, 4, 2, capacity, 8)
    rows = [KVRows([arena[:, row : row + 1]], [0], [arena], row) for row in row_indices]
    sizes = PaddedSizes.of(chunks)
    assert (sizes.num_tokens, sizes.num_prompts) == (padded_tokens, 4)
    query = torch.randn(padded_tokens, 4, 8)
    kv = torch.randn(padded_tokens, 2, 2, 8)
    packed_chunks = PackedChunks.of_cached_rows(chunks, rows, sizes, "cpu")
    addresses = CacheAddresses.of(chunks, rows, padded_tokens, "cpu")
    backend = AttentionBackend(
        KVSpec(num_layers=1, num_kv_heads=2, head_dim=8, dtype=torch.float32, device="cpu"),
        num_query_heads=4,
        rope=RopeParameters(torch.zeros(4)),
    )
    cos_sin = backend.rope.cos_sin(torch.zeros(1, padded_tokens))
    prefill = attention.CachedPrefill(
        backend, cos_sin, [arena], packed_chunks.with_tensors(packed_chunks.tensors), addresses
    )
    cached = prefill.attend(0, query, kv)
    uncached = None
    if are_whole_prompts(chunks):
        keys, values = kv[:tokens].unbind(1)
        uncached = PackedChunks.of_whole_prompts(chunks, "cpu").attend(query[:tokens], keys, values)
    first = 0
    for chunk, length, row in zip(chunks, lengths, row_indices, strict=True):
        end = chunk.start + length
        inside = slice(first, first + length)
        torch.testing.assert_close(
            arena[:, row, :, chunk.start : end], kv[inside].permute(1, 2, 0, 3)
        )
        prefix = slice(chunk.bidirectional_prefix_len)
        mask = torch.ones(end, end, dtype=torch.bool).tril()
        mask[prefix, prefix] = True
        keys, values = arena[:, row, :, :end].repeat_interleave(2, 1)
        queries = query[inside].transpose(0, 1)
        alone = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask[chunk.start :]
        ).transpose(0, 1)
        torch.testing.assert_close(cached[inside], alone.flatten(1))
        if uncached is not None:
            torch.testing.assert_close(uncached[inside], alone.flatten(1))
        first += length
