"""Stage *right*: in float32, answers equal those of transformers, the recorded ones, and those of
the engine on the CPU."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.engine.checkpoint import TRANSFORMERS_CLASSES
from benchmarks.gpu.answers import (
    SEEDED,
    PocketRequest,
    Reply,
    answer_all,
    caption_requests,
    is_equivalent,
    mixed_requests,
)
from benchmarks.gpu.drift import measure_drift
from benchmarks.gpu.pockets import load_checkpoint, load_pocket
from benchmarks.gpu.results import Line, StagePart
from benchmarks.gpu.setup import Setup
from models.flash import SequenceBounds, flash_attention, has_flash_attention
from models.fused import apply_rope_, has_fused_kernels, silu_and_mul
from models.moondream import model as moondream
from models.moondream.model import Moondream
from models.options import LoadOptions
from models.qwen2_5_vl import verify as qwen2_5_vl_verify
from models.registry import pocket_folder
from models.smolvlm import verify as smolvlm_verify
from raylens.core.types import Caption, Detect, Point, Query, SamplingParams
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.sequence import make_sequences
from testing import recorded_moondream as recorded
from testing.checkpoints import MOONDREAMS, random_moondream, random_qwen2_5_vl, random_smolvlm
from testing.exactness import assert_matches_generate, request, run_in_random_batches
from testing.families import run_slices
from testing.pictures import random_pixels

RANDOM_CHECKPOINTS: dict[str, Callable[..., Path]] = {
    "qwen2_5_vl": random_qwen2_5_vl,
    "smolvlm": random_smolvlm,
}
"""Functions that write a checkpoint of random weights, by family."""
GENERATE_INPUTS: dict[str, Callable[..., dict[str, Any]]] = {
    "qwen2_5_vl": qwen2_5_vl_verify.generate_inputs,
    "smolvlm": smolvlm_verify.generate_inputs,
}
"""Functions from a model and a prompt to the inputs of ``generate``, by family."""
BATCH = 16
"""Batch size on the device under test."""
CPU_BATCH = 5
"""Batch size on the CPU. It differs, so that answers can't depend on their batch."""
SEEDED_DIFFERENCES = 20
"""One in this many seeded answers may differ: a draw may fall close to the bound of two tokens."""
MAX_KL = 0.05
"""Largest mean KL divergence of the pocket checkpoints in bfloat16, in nats."""
FEATURES_TOLERANCE = 5e-4
"""Largest error of a feature."""
KERNELS_TOLERANCE = 2e-2
"""Largest error of a bfloat16 kernel: bfloat16 has 8 bits of precision."""
SYNCHRONIZES = "called a synchronizing"
"""Part of torch's warning about a wait. Its debug mode gives other warnings as well."""

Noise = Callable[..., Tensor]
"""Draws a random float32 tensor of a shape, on the device."""


def parts(setup: Setup) -> Iterator[StagePart]:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # for the convolutions of transformers' models
    yield StagePart("kernels", partial(_check_kernels, setup))
    for family in setup.families:
        yield from _family_parts(setup, family)


def _family_parts(setup: Setup, family: str) -> Iterator[StagePart]:
    if family == "moondream":
        for name in MOONDREAMS:
            yield StagePart(f"{family} {name}, recorded", partial(_check_recorded, setup, name))
    else:
        for weights in ("pocket", "random"):
            check = partial(_check_batching, setup, family, weights)
            yield StagePart(f"{family} {weights}, changing batches", check)
    yield StagePart(f"{family}, all categories", partial(_check_categories, setup, family))
    yield StagePart(f"{family}, CUDA graphs", partial(_check_graphs, setup, family))
    yield StagePart(f"{family}, bfloat16", partial(_check_bfloat16, setup, family))
    yield StagePart(f"{family}, waits", partial(_check_waits, setup, family))


def _checkpoint_folder(setup: Setup, family: str, weights: str) -> Path:
    """Return the folder of the ``pocket`` checkpoint or of one with ``random`` weights.

    Random weights give more varied answers.
    """
    if weights == "pocket":
        return pocket_folder(family)
    folder = setup.folder / family
    if not folder.exists():
        RANDOM_CHECKPOINTS[family](folder, scale=3.0)
    return folder


# --- answers against transformers and against recorded ones


def _check_batching(setup: Setup, family: str, weights: str) -> Iterator[Line]:
    """Compare requests that join, leave and are aborted with ``generate`` of each alone, token for
    token."""
    folder = _checkpoint_folder(setup, family, weights)
    model = load_checkpoint(family, folder, LoadOptions(device=setup.device))
    count = 12 if setup.is_tiny else 60
    finished = run_in_random_batches(model, random.Random(4), count, videos=family == "qwen2_5_vl")
    transformers_class = TRANSFORMERS_CLASSES[family]
    reference = transformers_class.from_pretrained(folder, dtype=torch.float32)
    reference = reference.to(setup.device).eval()
    make_inputs = partial(GENERATE_INPUTS[family], model)
    ties = assert_matches_generate(finished, reference, make_inputs)
    tokens = sum(len(sequence.output_ids) for sequence in finished)
    aborted = sum(sequence.aborted for sequence in finished)
    yield Line(
        f"{len(finished)} requests, {tokens} tokens, {aborted} aborted: equal to generate alone,"
        f" {ties} ties",
        {"requests": len(finished), "tokens": tokens, "ties": ties},
    )


def _check_recorded(setup: Setup, name: str) -> Iterator[Line]:
    """Compare features and answers with the reference implementation's, for the same random
    weights.

    The reference's results are recorded. Releases of Pillow resize some pictures differently:
    a result that the engine on this machine's CPU doesn't reproduce either is not counted.
    """
    folder = str(random_moondream(setup.folder / name, MOONDREAMS[name]))
    cpu_model = moondream.load(folder, LoadOptions(device="cpu"))
    model = moondream.load(folder, LoadOptions(device=setup.device))
    expected = {}
    for record in recorded.RECORDED[name]["features"]:
        expected["{}×{}".format(*record["picture"])] = np.array(record["values"])
    cpu_features = _sample_features(cpu_model, name)
    features = _sample_features(model, name)
    reproduced = sum(
        np.abs(cpu_features[size] - values).max() <= FEATURES_TOLERANCE
        for size, values in expected.items()
    )
    errors = {size: float(np.abs(features[size] - cpu_features[size]).max()) for size in expected}
    worst = max(errors.values())
    yield Line(
        f"features differ by {worst:.1e} from the CPU's;"
        f" {reproduced} of the CPU's {len(expected)} are as recorded",
        errors,
    )
    assert worst <= FEATURES_TOLERANCE, f"features differ by {worst:.1e}"
    yield from _check_recorded_answers(cpu_model, model, name)
    assert reproduced >= len(expected) - 1, "the CPU's features differ from the recorded ones"


def _check_recorded_answers(cpu_model: Moondream, model: Moondream, name: str) -> Iterator[Line]:
    expected = [recorded.expected_answer(record) for record in recorded.RECORDED[name]["answers"]]
    cpu_answers = _answer_recorded(cpu_model, name)
    answers = _answer_recorded(model, name)
    same = _count_equal(answers, cpu_answers)
    reproduced = _count_equal(cpu_answers, expected)
    yield Line(
        f"{same} of {len(expected)} answers equal the CPU's;"
        f" {reproduced} of the CPU's are as recorded",
        {"same": same},
    )
    assert same == len(expected), "answers differ from the CPU's"


def _count_equal(answers: list[Any], others: list[Any]) -> int:
    return sum(answer == other for answer, other in zip(answers, others, strict=True))


def _sample_features(model: Moondream, name: str) -> dict[str, NDArray[np.float32]]:
    """Return the same sample of each recorded picture's features, by the picture's size."""
    features_by_size = {}
    for record in recorded.RECORDED[name]["features"]:
        width, height, seed = record["picture"]
        prompt = model.prepare(request(Caption()), [random_pixels(width, height, seed)])
        (features,) = run_slices(model.encode(prompt.pictures))
        features_by_size[f"{width}×{height}"] = features[::5, ::31].flatten()[:40].cpu().numpy()
    return features_by_size


def _answer_recorded(model: Moondream, name: str) -> list[Any]:
    """Answer the recorded questions in one batch."""
    records = recorded.RECORDED[name]["answers"]
    requests = [recorded.recorded_sequences(model, record) for record in records]
    recorded.run(model, requests)
    return [recorded.answer(model, sequence) for (sequence,) in requests]


# --- kernels


def _check_kernels(setup: Setup) -> Iterator[Line]:
    """Compare our kernels, and torch's flash attention over the KV cache, with float64."""
    device = torch.device(setup.device, 0) if setup.is_cuda else torch.device("cpu")
    is_supported = has_fused_kernels(device, torch.bfloat16) and has_flash_attention(
        device, torch.bfloat16, 128
    )
    if not is_supported:
        yield Line("not supported on this device", {"run": False})
        assert not setup.is_cuda, "this GPU supports neither Triton's kernels nor flash attention"
        return
    generator = torch.Generator(device).manual_seed(3)
    noise = partial(torch.randn, device=device, generator=generator)
    errors = {**_rope_errors(noise), "swiglu": _swiglu_error(noise), **_flash_errors(noise)}
    text = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    yield Line(f"errors: {text}", errors)
    assert max(errors.values()) < KERNELS_TOLERANCE, "errors exceed the tolerance"


def _rope_errors(noise: Noise) -> dict[str, float]:
    errors = {}
    for tokens, heads, size, rotated in ((300, 36, 128, 32), (50, 48, 80, 32), (7, 96, 64, 64)):
        states = noise(tokens, heads, size).bfloat16()
        angles = noise(tokens, size // 2)
        cos = angles.cos().double()[:, None]
        sin = angles.sin().double()[:, None]
        left, right = states.double().chunk(2, -1)
        expected = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
        expected[:, rotated:] = states[:, rotated:]
        output = apply_rope_(states, angles.cos(), angles.sin(), rotated)
        errors[f"rope {size}"] = _relative_error(output, expected)
    return errors


def _swiglu_error(noise: Noise) -> float:
    gate_up = noise(70, 2 * 18_944).bfloat16()
    gate, up = gate_up.double().chunk(2, -1)
    return _relative_error(silu_and_mul(gate_up), gate * gate.sigmoid() * up)


def _relative_error(output: Tensor, expected: Tensor) -> float:
    return float(((output - expected).abs() / (1 + expected.abs())).max())


def _flash_errors(noise: Noise) -> dict[str, float]:
    """Return the error of each row of a KV cache with rows of different lengths."""
    lengths = [5, 300, 17]
    capacity = 512
    query = noise(3, 28, 128).bfloat16()
    cache = noise(2, 3, capacity, 4, 128).bfloat16()  # (keys and values, rows, tokens, heads, size)
    ends = torch.arange(4, dtype=torch.int32, device=query.device)
    keys, values = cache.flatten(1, 2)
    output = flash_attention(
        query,
        keys,
        values,
        SequenceBounds(ends, 1),
        SequenceBounds(ends * capacity, capacity),
        seqused=torch.tensor(lengths, dtype=torch.int32, device=query.device),
    )
    errors = {}
    for row, length in enumerate(lengths):
        keys, values = cache[:, row, :length].double().repeat_interleave(7, 2).transpose(1, 2)
        expected = F.scaled_dot_product_attention(query[row].double()[:, None], keys, values)
        errors[f"flash {length}"] = float((output[row] - expected[:, 0]).abs().max())
    return errors


# --- answers against the engine on the CPU, and against other settings


def _check_categories(setup: Setup, family: str) -> Iterator[Line]:
    """Compare answers of every category with those of the engine on the CPU: boxes and points,
    reasoning, schemas, penalties, seeds and logprobs."""
    requests = mixed_requests(family, 2 if setup.is_tiny else 8)
    model = load_pocket(family, device=setup.device)
    replies = answer_all(model, requests, BATCH, setup.threads)
    cpu_model = load_pocket(family, device="cpu")
    cpu_replies = answer_all(cpu_model, requests, CPU_BATCH, setup.threads)
    total: Counter[str] = Counter()
    same: Counter[str] = Counter()
    for pocket_request, ours, theirs in zip(requests, replies, cpu_replies, strict=True):
        total[pocket_request.category] += len(ours)
        same[pocket_request.category] += sum(map(is_equivalent, ours, theirs))
    counts = ", ".join(f"{category} {same[category]}/{total[category]}" for category in total)
    yield Line(f"equal to the CPU's: {counts}", {"same": dict(same), "asked": dict(total)})
    differing = []
    for category, count in total.items():
        allowed = count // SEEDED_DIFFERENCES if category == SEEDED else 0
        if same[category] < count - allowed:
            differing.append(category)
    assert not differing, f"answers differ from the CPU's: {', '.join(differing)}"


def _check_graphs(setup: Setup, family: str) -> Iterator[Line]:
    """Compare answers with and without CUDA graphs.

    In float32 they are equal. In bfloat16 a few answers may differ, because prompts are replayed as
    well, in batches that are filled up.
    """
    requests = caption_requests(6 if setup.is_tiny else 48, SamplingParams(40, logprobs=0))
    note = "" if setup.is_cuda else " (a CPU has no graphs)"
    for dtype in (torch.float32, torch.bfloat16):
        is_exact = dtype is torch.float32
        with_graphs = _answer_captions(setup, family, requests, dtype, cuda_graphs=True)
        without = _answer_captions(setup, family, requests, dtype, cuda_graphs=False)
        same = sum(
            is_equivalent(reply, other) if is_exact else reply.text == other.text
            for reply, other in zip(with_graphs, without, strict=True)
        )
        name = str(dtype).removeprefix("torch.")
        yield Line(
            f"{name}: {same} of {len(requests)} answers equal those without graphs{note}",
            {"same": same, "asked": len(requests)},
        )
        minimum = (1.0 if is_exact else 0.9) * len(requests)
        assert same >= minimum, f"{name}: answers differ with CUDA graphs"


def _answer_captions(
    setup: Setup,
    family: str,
    requests: list[PocketRequest],
    dtype: torch.dtype,
    cuda_graphs: bool,
) -> list[Reply]:
    model = load_pocket(family, device=setup.device, dtype=dtype, cuda_graphs=cuda_graphs)
    return [reply for (reply,) in answer_all(model, requests, BATCH, setup.threads)]


def _check_waits(setup: Setup, family: str) -> Iterator[Line]:
    """Check that the host waits in a decode step for its tokens only."""
    model = load_pocket(family, device=setup.device, dtype=torch.bfloat16)
    # All requests are prefilled together: none ends before the last one decodes.
    limits = EngineLimits(
        max_batch_size=8, async_scheduling=True, max_prefill_batch_size=8, max_prefill_tokens=16_384
    )
    engine = Engine(model, limits)
    tasks = [
        task
        for task in (Caption(), Query("?"), Detect("circle"), Point("circle"))
        if task.name in model.tasks
    ]
    requests = [request(task, max_tokens=64) for task in tasks]
    sampling = {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 1.0, "logprobs": 2}
    requests.append(request(Caption(), max_tokens=64, **sampling))
    for vision_request in requests:
        prompt = model.prepare(vision_request, [random_pixels(300, 200, 1)])
        engine.scheduler.add(make_sequences(vision_request, prompt, model.tokenizer))
    while engine.scheduler.waiting or engine.scheduler.prefilling:
        engine.step()
    engine.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if setup.is_cuda:
            torch.cuda.set_sync_debug_mode("warn")
        steps = 0
        while engine.scheduler.running and steps < 4:
            assert not [output.error for output in engine.step() if output.error]
            steps += 1
        if setup.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    waits = {
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if SYNCHRONIZES in str(warning.message)
    }
    lines = sorted(waits)
    note = "" if setup.is_cuda else " (a CPU never waits)"
    yield Line(
        f"{len(lines)} source lines wait in {steps} steps of {len(requests)} answers{note}",
        {"places": lines},
    )
    assert not lines, f"source lines that wait: {', '.join(lines)}"


def _check_bfloat16(setup: Setup, family: str) -> Iterator[Line]:
    """Measure the drift of bfloat16 answers from float32.

    The pocket checkpoint's drift is bounded, because its answers have a high probability.
    """
    drifts = {}
    checkpoints = ["pocket"]
    if family in RANDOM_CHECKPOINTS:
        checkpoints.append("random")
    for weights in checkpoints:
        folder = _checkpoint_folder(setup, family, weights)
        device = setup.device
        exact = load_checkpoint(family, folder, LoadOptions(device=device, dtype=torch.float32))
        rough = load_checkpoint(family, folder, LoadOptions(device=device, dtype=torch.bfloat16))
        sampling = SamplingParams(40, logprobs=exact.vocab_size)
        requests = caption_requests(4 if setup.is_tiny else 8, sampling)
        exact_replies = answer_all(exact, requests, BATCH, setup.threads)
        rough_replies = answer_all(rough, requests, BATCH, setup.threads)
        pairs = [
            (exact_reply, rough_reply)
            for (exact_reply,), (rough_reply,) in zip(exact_replies, rough_replies, strict=True)
        ]
        drift = measure_drift(pairs)
        drifts[weights] = drift
        yield Line(f"{weights}: {drift}", {"weights": weights, **asdict(drift)})
    assert drifts["pocket"].kl < MAX_KL, f"the mean KL divergence exceeds {MAX_KL}"
