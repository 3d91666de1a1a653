"""The ways of a GPU on a CPU, by stand-ins for flash attention and for CUDA's graphs: answers stay
exact."""

from __future__ import annotations

import random
from collections.abc import Callable
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
from models.graphs import Graphs, ModelGraphs
from models.moondream import model as moondream
from models.packed import (
    CacheAddresses,
    PackedChunks,
    PaddedSizes,
    are_whole_prompts,
    can_be_packed,
)
from models.qwen2_5_vl import model as qwen2_5_vl
from models.rope import Rotary
from models.smolvlm import model as smolvlm
from raylens.engine.limits import EngineLimits
from raylens.engine.model import KVRows, KVShape, PrefillChunk
from testing.checkpoints import MOONDREAMS, random_moondream, random_qwen2_5_vl, random_smolvlm
from testing.exactness import assert_as_alone, run_in_company
from tests.unit.models import test_moondream, test_qwen2_5_vl, test_smolvlm
from tests.unit.models.test_graphs import Recorder

LIMITS = EngineLimits(max_batch_size=6, prefill_tokens=1200, prefill_batch=6, look_ahead=True)


def plain_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: SequenceBounds,
    keys: SequenceBounds,
    causal: bool = False,
    seqused: Tensor | None = None,
) -> Tensor:
    """Sequence by sequence; NaN in the places of no sequence."""
    out = torch.full_like(query, torch.nan)
    starts, key_starts = queries.cu_seqlens.tolist(), keys.cu_seqlens.tolist()
    for row, (first, last) in enumerate(pairwise(starts)):
        begin, end = key_starts[row], key_starts[row + 1]
        end = end if seqused is None else begin + int(seqused[row])
        assert last - first <= queries.max_seqlen
        assert end - begin <= keys.max_seqlen
        if first == last:
            continue
        mask = torch.ones(last - first, end - begin, dtype=torch.bool)
        mask = mask.tril(end - begin - (last - first)) if causal else mask
        shared = query.shape[1] // key.shape[1]
        ours = query[first:last].transpose(0, 1)
        theirs, read = (
            part[begin:end].repeat_interleave(shared, 1).transpose(0, 1) for part in (key, value)
        )
        mixed = F.scaled_dot_product_attention(ours, theirs, read, attn_mask=mask)
        out[first:last] = mixed.transpose(0, 1)
    return out


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Has a model go a GPU's ways, and counts its graphs of prompts; ``flashes``: as in half
    precision."""
    monkeypatch.setattr(attention, "flash", plain_flash)
    monkeypatch.setattr(packed, "flash", plain_flash)

    def change(model: Any, flashes: bool) -> Recorder:
        recorder = Recorder()
        model._decoder._attention.is_on_gpu = True
        model._decoder._attention.has_flash = flashes
        model._decoder._graphs = ModelGraphs(Graphs(Recorder()), Graphs(recorder))
        return recorder

    return change


@pytest.mark.parametrize("flashes", [True, False], ids=["flash", "causal"])
def test_smolvlm_answers_as_generate_alone(as_on_a_gpu, tmp_path: Path, flashes: bool) -> None:
    model = smolvlm.load(str(random_smolvlm(tmp_path, scale=3.0)))
    recorder = as_on_a_gpu(model, flashes)
    made = run_in_company(model, random.Random(4), 60, limits=LIMITS)
    assert_as_alone(
        made,
        SmolVLMForConditionalGeneration.from_pretrained(tmp_path),
        test_smolvlm.reference_inputs,
    )
    assert (recorder.replays > 0) is flashes


@pytest.mark.parametrize("flashes", [True, False], ids=["flash", "causal"])
def test_qwen2_5_vl_answers_as_generate_alone(as_on_a_gpu, tmp_path: Path, flashes: bool) -> None:
    model = qwen2_5_vl.load(str(random_qwen2_5_vl(tmp_path, scale=3.0)))
    recorder = as_on_a_gpu(model, flashes)
    model._most_patches = 10**6
    made = run_in_company(model, random.Random(5), 60, videos=True, limits=LIMITS)
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert_as_alone(made, reference, test_qwen2_5_vl.reference_inputs(model))
    assert (recorder.replays > 0) is flashes


@pytest.mark.parametrize("flashes", [True, False], ids=["flash", "causal"])
@pytest.mark.parametrize("name", list(MOONDREAMS))
def test_moondream_answers_as_the_reference(
    as_on_a_gpu, tmp_path: Path, name: str, flashes: bool
) -> None:
    model = moondream.load(str(random_moondream(tmp_path, MOONDREAMS[name])))
    recorder = as_on_a_gpu(model, flashes)
    recorded = test_moondream.RECORDED[name]["answers"]
    asked = [test_moondream.ask(model, each) for each in recorded]
    test_moondream.run(model, asked, limits=LIMITS)
    for (sequence,), each in zip(asked, recorded, strict=True):
        assert test_moondream.answer(model, sequence) == test_moondream.expected(each), each["kind"]
    assert (recorder.replays > 0) is flashes


@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 6, 3), (8, 6, 3)])
@pytest.mark.parametrize("wholes", [(0, 0, 0), (5, 0, 3), (5, 6, 3)])
def test_parts_attend_to_their_rows_as_each_does_alone(
    monkeypatch: pytest.MonkeyPatch, starts: tuple[int, ...], wholes: tuple[int, ...]
) -> None:
    """``wholes``: how many of each prompt's first tokens see each other; ``starts``: how many are
    in the cache."""
    monkeypatch.setattr(packed, "flash", plain_flash)
    lengths, places, capacity = (9, 1, 12), (2, 0, 1), 32
    wholes = tuple(  # a part that holds some of these tokens holds more than all of them
        whole if start >= whole or whole < length else 0
        for start, whole, length in zip(starts, wholes, lengths, strict=True)
    )
    parts = [
        PrefillChunk(start, range(length), [], np.arange(start, start + length)[None], whole)
        for start, length, whole in zip(starts, lengths, wholes, strict=True)
    ]
    assert can_be_packed(parts)
    torch.manual_seed(0)
    arena = torch.randn(2, 4, 2, capacity, 8)
    rows = [KVRows([arena[:, place : place + 1]], [0], [arena], place) for place in places]
    sizes = PaddedSizes.of(parts)
    assert (sizes.tokens, sizes.prompts) == (64, 4)
    query, pairs = torch.randn(64, 4, 8), torch.randn(64, 2, 2, 8)
    made = PackedChunks.of_cached_rows(parts, rows, sizes, "cpu")
    addresses = CacheAddresses.of(parts, rows, 64, "cpu")
    backend = AttentionBackend(
        KVShape(layers=1, heads=2, head_dim=8, dtype=torch.float32, device="cpu"),
        heads=4,
        rotary=Rotary(torch.zeros(4)),
    )
    cos_sin = backend.rope.cos_sin(torch.zeros(1, 64))
    prefill = attention.CachedPrefill(
        backend, cos_sin, [arena], made.with_tensors(made.tensors), addresses
    )
    mixed = prefill.attend(0, query, pairs)
    whole = (
        PackedChunks.of_whole_prompts(parts, "cpu").attend(query[:22], *pairs[:22].unbind(1))
        if are_whole_prompts(parts)
        else None
    )
    first = 0
    for part, length, place in zip(parts, lengths, places, strict=True):
        end, here = part.start + length, slice(first, first + length)
        torch.testing.assert_close(
            arena[:, place, :, part.start : end], pairs[here].permute(1, 2, 0, 3)
        )
        seen = torch.ones(end, end, dtype=torch.bool).tril()
        seen[: part.bidirectional_prefix_len, : part.bidirectional_prefix_len] = True
        keys, values = arena[:, place, :, :end].repeat_interleave(2, 1)
        ours = query[here].transpose(0, 1)
        alone = F.scaled_dot_product_attention(
            ours, keys, values, attn_mask=seen[part.start :]
        ).transpose(0, 1)
        torch.testing.assert_close(mixed[here], alone.flatten(1))
        if whole is not None:
            torch.testing.assert_close(whole[here], alone.flatten(1))
        first += length
