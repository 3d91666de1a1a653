"""Stage *right*: in float32, answers are those of transformers, of recorded numbers, and of the
CPU's engine."""

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
from torch.nn import functional as F

from benchmarks.engine.checkpoint import REFERENCES
from benchmarks.gpu.answers import SEEDED, agree, ask_all, captions, mixed
from benchmarks.gpu.drift import drift
from benchmarks.gpu.pockets import load, pocket
from benchmarks.gpu.results import Line, Part
from benchmarks.gpu.setup import Setup
from models.flash import SequenceBounds, flash, has_flash_attention
from models.fused import apply_rope_, has_fused_kernels, silu_and_mul
from models.moondream import model as moondream
from models.moondream.model import Moondream
from models.options import LoadOptions
from models.qwen2_5_vl.model import Qwen2_5_VL
from models.registry import POCKET
from raylens.core.types import Caption, Detect, Point, Query, SamplingParams
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.sequence import sequences
from testing.checkpoints import MOONDREAMS, random_moondream, random_qwen2_5_vl, random_smolvlm
from testing.exactness import assert_as_alone, request, run_in_company
from testing.pictures import random_pixels
from tests.unit.models import test_moondream as recorded
from tests.unit.models import test_qwen2_5_vl, test_smolvlm

RANDOM: dict[str, Callable[..., Path]] = {
    "qwen2_5_vl": random_qwen2_5_vl,
    "smolvlm": random_smolvlm,
}
BATCH, OTHER_BATCH = 16, 5
"""Answers on the device run in one company, and those that they are compared with in another."""
MOST_UNLIKE = 20
"""One in so many seeded answers may differ: a draw falls close to a bound between two tokens."""
MOST_KL = 0.05
FEATURES_NEAR = 5e-4
"""Of features' recorded values."""
KERNELS_NEAR = 2e-2
"""bfloat16 has 8 bits."""
SYNCHRONIZES = "called a synchronizing"
"""What torch says of a wait; of its debug mode it says other things."""


def parts(setup: Setup) -> Iterator[Part]:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # transformers' convolutions, too
    yield Part("kernels", partial(_kernels, setup))
    for family in setup.families:
        if family == "moondream":
            for name in MOONDREAMS:
                yield Part(f"{family} {name}, recorded", partial(_recorded, setup, name))
        else:
            for weights in ("pocket", "random"):
                yield Part(
                    f"{family} {weights}, in company", partial(_company, setup, family, weights)
                )
        yield Part(f"{family}, every kind of answer", partial(_kinds, setup, family))
        yield Part(f"{family}, CUDA graphs", partial(_graphs, setup, family))
        yield Part(f"{family}, bfloat16", partial(_bfloat16, setup, family))
        yield Part(f"{family}, waits", partial(_waits, setup, family))


def _checkpoint(setup: Setup, family: str, weights: str) -> Path:
    """Folder of the ``pocket`` checkpoint, or of one of ``random`` weights, whose answers vary
    more."""
    folder = setup.folder / family
    if weights == "random" and not folder.exists():
        RANDOM[family](folder, scale=3.0)
    return folder if weights == "random" else POCKET / family


def _company(setup: Setup, family: str, weights: str) -> Iterator[Line]:
    """Requests that come, go and are aborted, token for token what ``generate`` says to each alone."""
    folder = _checkpoint(setup, family, weights)
    model = load(family, folder, LoadOptions(device=setup.device))
    count = 12 if setup.is_tiny else 60
    made = run_in_company(model, random.Random(4), count, videos=family == "qwen2_5_vl")
    reference = (
        REFERENCES[family].from_pretrained(folder, dtype=torch.float32).to(setup.device).eval()
    )
    inputs = test_smolvlm.reference_inputs
    if isinstance(model, Qwen2_5_VL):
        inputs = test_qwen2_5_vl.reference_inputs(model)
    ties = assert_as_alone(made, reference, inputs)
    tokens, aborted = sum(len(each.output_ids) for each in made), sum(each.aborted for each in made)
    yield Line(
        f"{len(made)} requests, {tokens} tokens, {aborted} aborted: as generate alone, {ties} ties",
        {"requests": len(made), "tokens": tokens, "ties": ties},
    )


def _recorded(setup: Setup, name: str) -> Iterator[Line]:
    """Features and answers that the reference implementation gave for the same noise as weights.
    What the CPU of this machine says otherwise as well isn't counted: releases of Pillow resize
    some pictures differently."""
    folder = random_moondream(setup.folder / name, MOONDREAMS[name])
    here, ours = (
        moondream.load(str(folder), LoadOptions(device=device)) for device in ("cpu", setup.device)
    )
    told = recorded.RECORDED[name]
    pictures = {
        "{}×{}".format(*each["picture"]): np.array(each["values"]) for each in told["features"]
    }
    seen = [_features(model, name) for model in (here, ours)]
    alike = [
        size
        for size, values in pictures.items()
        if np.abs(seen[0][size] - values).max() <= FEATURES_NEAR
    ]
    off = {size: float(np.abs(seen[1][size] - seen[0][size]).max()) for size in pictures}
    worst = max(off.values())
    yield Line(
        f"features {worst:.1e} from the CPU's, of which {len(alike)} of {len(pictures)} are as recorded",
        off,
    )
    assert worst <= FEATURES_NEAR, f"{worst:.1e} off"
    said = [_recorded_answers(model, name) for model in (here, ours)]
    expected = [recorded.expected(each) for each in told["answers"]]
    same = sum(each == other for each, other in zip(*said, strict=True))
    yield Line(
        f"{same} of {len(expected)} answers as the CPU's, of which"
        f" {sum(each == other for each, other in zip(said[0], expected, strict=True))} are as recorded",
        {"same": same},
    )
    assert same == len(expected)
    assert len(alike) >= len(pictures) - 1, "the CPU's features differ from the recorded ones"


def _features(model: Moondream, name: str) -> dict[str, NDArray[np.float32]]:
    """What is recorded of the features of each picture, by its size."""
    found = {}
    for each in recorded.RECORDED[name]["features"]:
        width, height, seed = each["picture"]
        prompt = model.prepare(request(Caption()), [random_pixels(width, height, seed)])
        (features,) = recorded.drained(model.encode(prompt.pictures))
        found[f"{width}×{height}"] = features[::5, ::31].flatten()[:40].cpu().numpy()
    return found


def _recorded_answers(model: Moondream, name: str) -> list[Any]:
    told = recorded.RECORDED[name]["answers"]
    asked = [recorded.ask(model, each) for each in told]
    recorded.run(model, asked)
    return [recorded.answer(model, said) for (said,) in asked]


def _kernels(setup: Setup) -> Iterator[Line]:
    """Our kernels, and torch's flash attention over rows of the cache, beside float64."""
    device = torch.device(setup.device, 0) if setup.is_cuda else torch.device("cpu")
    if not (
        has_fused_kernels(device, torch.bfloat16)
        and has_flash_attention(device, torch.bfloat16, 128)
    ):
        yield Line("none run here", {"run": False})
        assert not setup.is_cuda, "neither Triton's nor flash attention's kernels run"
        return
    noise = partial(torch.randn, device=device, generator=torch.Generator(device).manual_seed(3))
    off = {}
    for tokens, heads, size, turned in ((300, 36, 128, 32), (50, 48, 80, 32), (7, 96, 64, 64)):
        states, angles = noise(tokens, heads, size).bfloat16(), noise(tokens, size // 2)
        cos, sin = angles.cos().double()[:, None], angles.sin().double()[:, None]
        left, right = states.double().chunk(2, -1)
        expected = torch.cat([left * cos - right * sin, right * cos + left * sin], -1)
        expected[:, turned:] = states[:, turned:]
        ours = apply_rope_(states, angles.cos(), angles.sin(), turned)
        off[f"rope {size}"] = float(((ours - expected).abs() / (1 + expected.abs())).max())
    gate, up = (gate_up := noise(70, 2 * 18_944).bfloat16()).double().chunk(2, -1)
    expected = gate * gate.sigmoid() * up
    off["swiglu"] = float(((silu_and_mul(gate_up) - expected).abs() / (1 + expected.abs())).max())
    lengths, capacity = [5, 300, 17], 512
    query, cache = noise(3, 28, 128).bfloat16(), noise(2, 3, capacity, 4, 128).bfloat16()
    ends = torch.arange(4, dtype=torch.int32, device=device)
    seqused = torch.tensor(lengths, dtype=torch.int32, device=device)
    keys, values = cache.flatten(1, 2)
    ours = flash(
        query,
        keys,
        values,
        SequenceBounds(ends, 1),
        SequenceBounds(ends * capacity, capacity),
        seqused=seqused,
    )
    for row, length in enumerate(lengths):
        keys, values = cache[:, row, :length].double().repeat_interleave(7, 2).transpose(1, 2)
        expected = F.scaled_dot_product_attention(query[row].double()[:, None], keys, values)[:, 0]
        off[f"flash {length}"] = float((ours[row] - expected).abs().max())
    yield Line("off by " + ", ".join(f"{name} {each:.1e}" for name, each in off.items()), off)
    assert max(off.values()) < KERNELS_NEAR


def _kinds(setup: Setup, family: str) -> Iterator[Line]:
    """Places, thoughts, schemas, penalties, seeds and logprobs, as the CPU's engine answers."""
    asked = mixed(family, 2 if setup.is_tiny else 8)
    said, expected = (
        ask_all(pocket(family, device=device), asked, batch, setup.threads)
        for device, batch in ((setup.device, BATCH), ("cpu", OTHER_BATCH))
    )
    total: Counter[str] = Counter()
    same: Counter[str] = Counter()
    for each, ours, theirs in zip(asked, said, expected, strict=True):
        total[each.kind] += len(ours)
        same[each.kind] += sum(map(agree, ours, theirs))
    counts = ", ".join(f"{kind} {same[kind]}/{total[kind]}" for kind in total)
    yield Line(f"as on the CPU: {counts}", {"same": dict(same), "asked": dict(total)})
    least = {
        kind: count - (count // MOST_UNLIKE if kind == SEEDED else 0)
        for kind, count in total.items()
    }
    short = [kind for kind in total if same[kind] < least[kind]]
    assert not short, f"differ: {', '.join(short)}"


def _graphs(setup: Setup, family: str) -> Iterator[Line]:
    """What is replayed says what plain steps do: exactly in float32, and, in bfloat16, where
    prompts are replayed too and batches are filled up, but for a few answers."""
    asked = captions(6 if setup.is_tiny else 48, SamplingParams(40, logprobs=0))
    note = "" if setup.is_cuda else " (the CPU has none)"
    for dtype in (torch.float32, torch.bfloat16):
        said = [
            ask_all(
                pocket(family, device=setup.device, dtype=dtype, cuda_graphs=graphs),
                asked,
                BATCH,
                setup.threads,
            )
            for graphs in (True, False)
        ]
        pairs = [(ours[0], theirs[0]) for ours, theirs in zip(*said, strict=True)]
        exact = dtype is torch.float32
        same = sum(agree(*pair) if exact else pair[0].text == pair[1].text for pair in pairs)
        name = str(dtype).removeprefix("torch.")
        yield Line(
            f"{name}: {same} of {len(asked)} answers as without{note}",
            {"same": same, "asked": len(asked)},
        )
        assert same >= (1.0 if exact else 0.9) * len(asked)


def _waits(setup: Setup, family: str) -> Iterator[Line]:
    """What a decode step waits for beside its tokens: nothing."""
    model = pocket(family, device=setup.device, dtype=torch.bfloat16)
    # All enter together, so that none has ended before the last has begun.
    engine = Engine(
        model,
        EngineLimits(max_batch_size=8, look_ahead=True, prefill_batch=8, prefill_tokens=16_384),
    )
    tasks = [
        task
        for task in (Caption(), Query("?"), Detect("circle"), Point("circle"))
        if task.name in model.tasks
    ]
    asked = [request(task, max_tokens=64) for task in tasks]
    asked.append(
        request(
            Caption(), max_tokens=64, temperature=1.0, top_p=0.9, presence_penalty=1.0, logprobs=2
        )
    )
    for each in asked:
        engine.scheduler.add(
            sequences(each, model.prepare(each, [random_pixels(300, 200, 1)]), model.tokenizer)
        )
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
    places = sorted(
        {
            f"{Path(each.filename).name}:{each.lineno}"
            for each in caught
            if SYNCHRONIZES in str(each.message)
        }
    )
    note = "" if setup.is_cuda else " (a CPU never waits)"
    yield Line(
        f"{len(places)} places wait in {steps} steps of {len(asked)} answers{note}",
        {"places": places},
    )
    assert not places, ", ".join(places)


def _bfloat16(setup: Setup, family: str) -> Iterator[Line]:
    """How far answers in bfloat16 drift from those in float32. The pocket's, which is sure of what
    it says, must stay near."""
    drifts = {}
    for weights in ("pocket", "random") if family in RANDOM else ("pocket",):
        folder = _checkpoint(setup, family, weights)
        exact, rough = (
            load(family, folder, LoadOptions(device=setup.device, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)
        )
        asked = captions(4 if setup.is_tiny else 8, SamplingParams(40, logprobs=exact.vocabulary))
        pairs = zip(
            *(ask_all(model, asked, BATCH, setup.threads) for model in (exact, rough)), strict=True
        )
        drifts[weights] = found = drift([(ours[0], theirs[0]) for ours, theirs in pairs])
        yield Line(f"{weights}: {found}", {"weights": weights, **asdict(found)})
    assert drifts["pocket"].kl < MOST_KL, f"the mean KL divergence is over {MOST_KL}"
