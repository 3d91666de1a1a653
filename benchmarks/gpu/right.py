"""Stage *right*: in float32, answers are those of transformers, of recorded numbers, and of the CPU's engine."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.engine.checkpoint import REFERENCES
from benchmarks.gpu.answers import SEEDED, agree, ask_all, captions, mixed
from benchmarks.gpu.drift import drift
from benchmarks.gpu.pockets import load, pocket
from benchmarks.gpu.results import Line, Part
from benchmarks.gpu.setup import Setup
from models.moondream import model as moondream
from models.moondream.model import Moondream
from models.options import LoadOptions
from models.qwen2_5_vl.model import Qwen2_5_VL
from models.registry import POCKET
from raylens.engine.engine import Engine
from raylens.engine.limits import Limits
from raylens.engine.sequence import sequences
from raylens.types import Caption, Detect, Point, Query, SamplingParams
from tests.checkpoints import MOONDREAMS, random_moondream, random_qwen2_5_vl, random_smolvlm
from tests.pictures import random_pixels
from tests.unit.models import test_moondream as recorded
from tests.unit.models import test_qwen2_5_vl, test_smolvlm
from tests.unit.models.exactness import assert_as_alone, request, run_in_company

RANDOM: dict[str, Callable[..., Path]] = {"qwen2_5_vl": random_qwen2_5_vl, "smolvlm": random_smolvlm}
BATCH, OTHER_BATCH = 16, 5
"""Answers on the device run in one company, and those that they are compared with in another."""
MOST_UNLIKE = 20
"""One in so many seeded answers may differ: a draw falls close to a bound between two tokens."""
MOST_KL = 0.05
FEATURES_NEAR = 5e-4
"""Of features' recorded values."""
SYNCHRONIZES = "called a synchronizing"
"""What torch says of a wait; of its debug mode it says other things."""


def parts(setup: Setup) -> Iterator[Part]:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False  # transformers' convolutions, too
    for family in setup.families:
        if family == "moondream":
            for name in MOONDREAMS:
                yield Part(f"{family} {name}, recorded", partial(_recorded, setup, name))
        else:
            for weights in ("pocket", "random"):
                yield Part(f"{family} {weights}, in company", partial(_company, setup, family, weights))
        yield Part(f"{family}, every kind of answer", partial(_kinds, setup, family))
        yield Part(f"{family}, CUDA graphs", partial(_graphs, setup, family))
        yield Part(f"{family}, bfloat16", partial(_bfloat16, setup, family))
        yield Part(f"{family}, waits", partial(_waits, setup, family))


def _checkpoint(setup: Setup, family: str, weights: str) -> Path:
    """Folder of the ``pocket`` checkpoint, or of one of ``random`` weights, whose answers vary more."""
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
    reference = REFERENCES[family].from_pretrained(folder, dtype=torch.float32).to(setup.device).eval()
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
    """Features and answers that the reference implementation gave for the same noise as weights. Beside a card's
    features stand this machine's CPU's: where both are off, the weights or the pictures are."""
    folder = random_moondream(setup.folder / name, MOONDREAMS[name])
    farthest = 0.0
    for device in dict.fromkeys(("cpu", setup.device)):
        model = moondream.load(str(folder), LoadOptions(device=device))
        off = dict(_features_off(model, name))
        farthest = max(farthest, *off.values())
        told = ", ".join(f"{size}: {each:.1e}" for size, each in off.items())
        yield Line(f"features on {device}, at most off by {told}", {"device": device, "features_off": off})
    assert farthest <= FEATURES_NEAR, f"{farthest:.1e} off"
    told = recorded.RECORDED[name]["answers"]
    asked = [recorded.ask(model, each) for each in told]
    recorded.run(model, asked)
    pairs = zip(asked, told, strict=True)
    unlike = [each["kind"] for (said,), each in pairs if recorded.answer(model, said) != recorded.expected(each)]
    yield Line(f"{len(told) - len(unlike)} of {len(told)} answers as recorded", {"unlike": unlike})
    assert not unlike, f"differ: {', '.join(unlike)}"


def _features_off(model: Moondream, name: str) -> Iterator[tuple[str, float]]:
    """Of each recorded picture, by its size: how far the features lie from the recorded ones at most."""
    for each in recorded.RECORDED[name]["features"]:
        width, height, seed = each["picture"]
        prompt = model.prepare(request(Caption()), [random_pixels(width, height, seed)])
        (features,) = recorded.drained(model.encode(prompt.pictures))
        shown = features[::5, ::31].flatten()[:40].cpu().numpy()
        yield f"{width}×{height}", float(np.abs(shown - np.array(each["values"])).max())


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
    least = {kind: count - (count // MOST_UNLIKE if kind == SEEDED else 0) for kind, count in total.items()}
    short = [kind for kind in total if same[kind] < least[kind]]
    assert not short, f"differ: {', '.join(short)}"


def _graphs(setup: Setup, family: str) -> Iterator[Line]:
    """Replayed decode steps say what plain ones do."""
    asked = captions(6 if setup.is_tiny else 24, SamplingParams(40, logprobs=0))
    said = [
        ask_all(pocket(family, device=setup.device, cuda_graphs=graphs), asked, BATCH, setup.threads)
        for graphs in (True, False)
    ]
    same = sum(agree(ours[0], theirs[0]) for ours, theirs in zip(*said, strict=True))
    note = "" if setup.is_cuda else " (the CPU has none)"
    yield Line(f"{same} of {len(asked)} answers as without{note}", {"same": same, "asked": len(asked)})
    assert same == len(asked)


def _waits(setup: Setup, family: str) -> Iterator[Line]:
    """What a decode step waits for beside its tokens: nothing."""
    model = pocket(family, device=setup.device, dtype=torch.bfloat16)
    # All enter together, so that none has ended before the last has begun.
    engine = Engine(model, Limits(max_batch_size=8, look_ahead=True, prefill_batch=8, prefill_tokens=16_384))
    tasks = [task for task in (Caption(), Query("?"), Detect("circle"), Point("circle")) if task.name in model.tasks]
    asked = [request(task, max_tokens=64) for task in tasks]
    asked.append(request(Caption(), max_tokens=64, temperature=1.0, top_p=0.9, presence_penalty=1.0, logprobs=2))
    for each in asked:
        engine.scheduler.add(sequences(each, model.prepare(each, [random_pixels(300, 200, 1)]), model.tokenizer))
    while engine.scheduler.waiting or engine.scheduler.entering:
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
        {f"{Path(each.filename).name}:{each.lineno}" for each in caught if SYNCHRONIZES in str(each.message)}
    )
    note = "" if setup.is_cuda else " (a CPU never waits)"
    yield Line(f"{len(places)} places wait in {steps} steps of {len(asked)} answers{note}", {"places": places})
    assert not places, ", ".join(places)


def _bfloat16(setup: Setup, family: str) -> Iterator[Line]:
    """How far answers in bfloat16 drift from those in float32. The pocket's, which is sure of what it says, must stay
    near."""
    drifts = {}
    for weights in ("pocket", "random") if family in RANDOM else ("pocket",):
        folder = _checkpoint(setup, family, weights)
        exact, rough = (
            load(family, folder, LoadOptions(device=setup.device, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)
        )
        asked = captions(4 if setup.is_tiny else 8, SamplingParams(40, logprobs=exact.vocabulary))
        pairs = zip(*(ask_all(model, asked, BATCH, setup.threads) for model in (exact, rough)), strict=True)
        drifts[weights] = found = drift([(ours[0], theirs[0]) for ours, theirs in pairs])
        yield Line(f"{weights}: {found}", {"weights": weights, **asdict(found)})
    assert drifts["pocket"].kl < MOST_KL, f"the mean KL divergence is over {MOST_KL}"
