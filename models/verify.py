"""``raylens verify``: a real checkpoint, loaded strictly, asked fixed questions about fixed
pictures, and compared with plain transformers, token for token, and with what the pictures show."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, hf_hub_download
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
)

from models.moondream import model as moondream
from models.operations import normalized
from models.options import LoadOptions
from models.pocket.drawing import draw
from models.pocket.scenes import Scene, Shape
from models.qwen2_5_vl.model import Qwen2_5_VL
from models.smolvlm.model import SmolVLM
from raylens.core.types import (
    Caption,
    Detect,
    Findings,
    Point,
    Query,
    SamplingParams,
    Task,
    VisionRequest,
)
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.model import Model, Prompt
from raylens.engine.sequence import Sequence as Answer
from raylens.engine.sequence import sequences

HOUR = 3600.0
TOKENS = 48
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIES = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Where the reference's two best logits lie so close, rounding chooses; bfloat16 has 8 bits."""
IOU = 0.5
REVISIONS = {"vikhyatk/moondream2": "2025-06-21"}
"""Where the newest revision isn't what is meant; what was loaded is always told by its commit."""
FAMILIES = {
    "moondream1": "moondream",
    "smolvlm": "smolvlm",
    "idefics3": "smolvlm",
    "qwen2_5_vl": "qwen2_5_vl",
}
"""By the ``model_type`` in a checkpoint's configuration."""
_MARKS = {True: "yes", False: "no", None: ""}
SCENES = (
    Scene(
        480,
        360,
        128,
        (
            Shape("circle", "red", 0, 80, 60, 44, (220, 40, 40)),
            Shape("square", "blue", 4, 240, 180, 40, (50, 80, 220)),
            Shape("triangle", "yellow", 8, 400, 300, 42, (235, 210, 50)),
        ),
    ),
    Scene(300, 500, 140, (Shape("circle", "green", 1, 150, 85, 40, (40, 170, 60)),)),
)


class Unverifiable(Exception):
    """The checkpoint can't be loaded strictly, or its family isn't known."""


@dataclass(frozen=True)
class Question:
    """About scene number ``scene``; ``holds`` are words of which a right answer has one."""

    task: Task
    scene: int
    holds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        match self.task:
            case Query(asked):
                return asked
            case Detect(subject) | Point(subject):
                return f"{self.task.name} {subject}"
        return self.task.name


QUESTIONS = (
    Question(Caption(), 0),
    Question(Caption(), 1),
    Question(Query("What color is the circle?"), 0, ("red",)),
    Question(Query("What color is the circle?"), 1, ("green",)),
    Question(Query("How many shapes are there?"), 0, ("3", "three", "Three")),
    Question(Detect("circle"), 0),
    Question(Detect("shape"), 0),
    Question(Point("square"), 0),
)


@dataclass(frozen=True)
class Line:
    """What came of a question: the answer, whether it is what the picture shows, and whether the
    reference says the same; None where there is nothing to compare with."""

    question: str
    said: str
    right: bool | None
    reference: str
    same: bool | None


@dataclass(frozen=True)
class Report:
    """``commit`` names what was loaded: the hub's, or nothing for a folder."""

    checkpoint: str
    commit: str | None
    lines: tuple[Line, ...]

    @property
    def verified(self) -> bool:
        """Whether every answer that has a reference is the reference's. What a model sees is its
        own affair, but where nothing else can be compared, that counts."""
        compared = [line.same for line in self.lines if line.same is not None]
        return all(compared) if compared else all(line.right is not False for line in self.lines)


@dataclass(frozen=True)
class Checkpoint:
    model: Model
    reference: Callable[[Question, str, Answer], tuple[str, bool | None]]
    """What the reference says to a question, and whether that is the same as we said."""


def verify(
    checkpoint: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    reference: Path | None = None,
) -> Report:
    """Downloads (but for a folder), loads and asks. ``reference``: for Moondream, a checkout of
    vikhyat/moondream.

    Raises ``Unverifiable``, and ``OSError`` where there is no such checkpoint.
    """
    revision = revision or REVISIONS.get(checkpoint)
    commit = (
        None if Path(checkpoint).is_dir() else HfApi().model_info(checkpoint, revision=revision).sha
    )
    if dtype not in DTYPES:
        raise Unverifiable(f"dtype: {dtype!r}; one of {', '.join(DTYPES)} is needed")
    options = LoadOptions(revision=commit, dtype=DTYPES[dtype], device=device)
    family = _family(checkpoint, commit)
    loaded = (
        _moondream(checkpoint, options, reference)
        if family == "moondream"
        else _stock(checkpoint, options, family)
    )
    return Report(checkpoint, commit, tuple(_lines(loaded)))


def show(report: Report) -> None:
    """Prints the report as a table."""
    of = f" at {report.commit}" if report.commit else ""
    table = Table(
        "question",
        "answer",
        "what is shown",
        "reference",
        "the same",
        title=f"{report.checkpoint}{of}",
    )
    for line in report.lines:
        marks = [_MARKS[each] for each in (line.right, line.same)]
        table.add_row(
            escape(line.question), escape(line.said), marks[0], escape(line.reference), marks[1]
        )
    console = Console()
    console.print(table)
    console.print("verified" if report.verified else "not verified")


def _family(checkpoint: str, revision: str | None) -> str:
    folder = Path(checkpoint)
    path = (
        folder / "config.json"
        if folder.is_dir()
        else hf_hub_download(checkpoint, "config.json", revision=revision)
    )
    kind = json.loads(Path(path).read_text()).get("model_type")
    if kind not in FAMILIES:
        raise Unverifiable(
            f"{checkpoint}: model_type {kind!r} is of no family that is known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def _stock(checkpoint: str, options: LoadOptions, family: str) -> Checkpoint:
    """One that plain transformers loads, and answers with."""
    stock, told = AutoModelForImageTextToText.from_pretrained(
        checkpoint, revision=options.revision, dtype=options.dtype, output_loading_info=True
    )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told[what]:
            raise Unverifiable(
                f"{checkpoint}: {what.replace('_keys', '')} tensors: {', '.join(map(str, told[what]))}"
            )
    stock = stock.to(options.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=options.revision)
    image_processor = AutoImageProcessor.from_pretrained(
        checkpoint, revision=options.revision, backend="pil"
    )
    kind: Any = SmolVLM if family == "smolvlm" else Qwen2_5_VL
    model = kind(stock, tokenizer, image_processor, options)
    inputs = _tiles if family == "smolvlm" else _patches
    return Checkpoint(
        model,
        lambda _, said, answer: _generated(answer, stock, inputs(model, answer.prompt), model),
    )


def _moondream(checkpoint: str, options: LoadOptions, reference: Path | None) -> Checkpoint:
    model = moondream.load(checkpoint, options)
    if reference is None:
        return Checkpoint(model, lambda question, said, answer: ("", None))
    return Checkpoint(model, _Upstream(reference, checkpoint, options, model).compare)


def _lines(checkpoint: Checkpoint) -> Iterator[Line]:
    model = checkpoint.model
    asked = [question for question in QUESTIONS if question.task.name in model.tasks]
    answers = _answers(model, asked)
    for question, answer in zip(asked, answers, strict=True):
        found = model.parse_findings(answer.prompt, answer.output_ids)
        said = _text(model, answer, found)
        theirs, same = checkpoint.reference(question, said, answer)
        yield Line(question.name, said, _is_right(question, said, found), theirs, same)


def _answers(model: Model, asked: Sequence[Question]) -> list[Answer]:
    """By the engine, all in one batch."""
    engine = Engine(model, EngineLimits(max_batch_size=len(asked)))
    made = []
    for question in asked:
        request = VisionRequest(
            "", "", question.task, time.time() + HOUR, SamplingParams(max_tokens=TOKENS)
        )
        made += sequences(
            request, model.prepare(request, [_pixels(question.scene)]), model.tokenizer
        )
    engine.scheduler.add(made)
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise output.error
    return made


def _pixels(scene: int) -> NDArray[np.uint8]:
    return draw(SCENES[scene], random.Random(scene))


def _text(model: Model, answer: Answer, found: Findings) -> str:
    if found.regions is not None:
        return _boxes([astuple(region) for region in found.regions])
    if found.locations is not None:
        return _boxes([astuple(location) for location in found.locations])
    text: str = model.tokenizer.decode([number for number in answer.output_ids if number >= 0])
    return " ".join(text.split())


def _is_right(question: Question, said: str, found: Findings) -> bool | None:
    scene = SCENES[question.scene]
    match question.task:
        case Detect(subject):
            boxes = scene.boxes(subject)
            regions = [(r.x_min, r.y_min, r.x_max, r.y_max) for r in found.regions or ()]
            hit = sum(any(_iou(box, region) >= IOU for region in regions) for box in boxes)
            return hit == len(boxes) == len(regions)
        case Point(subject):
            boxes = scene.boxes(subject)
            inside = [
                any(x1 <= place.x <= x2 and y1 <= place.y <= y2 for place in found.locations or ())
                for x1, y1, x2, y2 in boxes
            ]
            return all(inside) and len(found.locations or ()) == len(boxes)
    return any(word in said for word in question.holds) if question.holds else None


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _generated(
    answer: Answer, stock: GenerationMixin, inputs: dict[str, Tensor], model: Model
) -> tuple[str, bool]:
    """What ``generate`` says to the same prompt, and whether it is token for token the same, but
    for ties."""
    ids = torch.tensor([answer.prompt.token_ids], device=model.device)
    made = stock.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **inputs,
        # The checkpoint's own defaults may hold penalties, which our answers are made without.
        generation_config=_greedy(stock, len(answer.output_ids)),
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = made.sequences[0, ids.shape[1] :].tolist()
    text = " ".join(model.tokenizer.decode(expected).split())
    for step, (ours, theirs) in enumerate(zip(answer.output_ids, expected, strict=False)):
        if ours != theirs:
            best = made.logits[step][0].float().topk(2).values
            return text, bool(best[0] - best[1] < TIES.get(model.kv_shape.dtype, 0.0))
    return text, len(expected) == len(answer.output_ids)


def _greedy(stock: GenerationMixin, tokens: int) -> GenerationConfig:
    own = stock.generation_config
    # What is left out here is taken from the checkpoint's.
    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
    )


def _tiles(model: Any, prompt: Prompt) -> dict[str, Tensor]:
    tiles = torch.stack([torch.from_numpy(picture.data) for picture in prompt.pictures]).to(
        model.device
    )
    return {"pixel_values": normalized(tiles[None], *model.normal).to(model.kv_shape.dtype)}


def _patches(model: Any, prompt: Prompt) -> dict[str, Tensor]:
    ids = torch.tensor([prompt.token_ids], device=model.device)
    pixels = torch.cat([model.normalized(picture.data) for picture in prompt.pictures])
    grids = [
        (g.frames, g.rows, g.columns) for g in (picture.data.grid for picture in prompt.pictures)
    ]
    return {
        "pixel_values": pixels.to(model.kv_shape.dtype),
        "image_grid_thw": torch.tensor(grids, device=model.device),
        "mm_token_type_ids": (ids == model.image_id).int(),
    }


class _Upstream:
    """The reference implementation of Moondream, from a checkout, on the same checkpoint in
    float32."""

    def __init__(
        self, folder: Path, checkpoint: str, options: LoadOptions, model: moondream.Moondream
    ) -> None:
        sys.path.insert(0, str(folder))
        try:
            from moondream.torch import config as upstream_config
            from moondream.torch import image_crops
            from moondream.torch import moondream as upstream
        except ImportError as error:
            raise Unverifiable(f"{folder}: no checkout of vikhyat/moondream: {error}") from error

        class OurTokenizer:
            @staticmethod
            def from_pretrained(name: str) -> object:
                return model.tokenizer

        def float_crops(
            image: Image.Image, config: Any, device: Any
        ) -> tuple[Tensor, tuple[int, int]]:
            """As upstream's, which rounds to bfloat16 before it normalizes."""
            made = image_crops.overlap_crop_image(
                np.asarray(image.convert("RGB")),
                max_crops=config.max_crops,
                overlap_margin=config.overlap_margin,
            )
            pixels = torch.from_numpy(made["crops"]).permute(0, 3, 1, 2)
            return normalized(pixels, 1 / 255, (0.5,) * 3, (0.5,) * 3), made["tiling"]

        upstream.Tokenizer, upstream.prepare_crops = OurTokenizer, float_crops
        config: dict[str, Any] = model.config.to_dict()
        config["tokenizer"]["templates"] = {
            name: {part: list(ids) for part, ids in template.items()}
            for name, template in config["tokenizer"]["templates"].items()
        }
        self._model = upstream.MoondreamModel(
            upstream_config.MoondreamConfig.from_dict(config), dtype=torch.float32
        )
        tensors = load_file(moondream.files_of(checkpoint, options)[1])
        given = {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
        self._model.load_state_dict(given, strict=False)

    def compare(self, question: Question, said: str, answer: Answer) -> tuple[str, bool | None]:
        """Its answer in words, and whether it is the same."""
        image, settings = (
            Image.fromarray(_pixels(question.scene)),
            {"temperature": 0, "max_tokens": TOKENS},
        )
        encoded = self._model.encode_image(image)
        match question.task:
            case Caption(length):
                text = self._model.caption(encoded, length.value, settings=settings)["caption"]
            case Query(words):
                text = self._model.query(encoded, words, settings=settings)["answer"]
            case Detect(subject):
                objects = self._model.detect(encoded, subject)["objects"]
                text = _boxes([tuple(each.values()) for each in objects])
            case Point(subject):
                points = self._model.point(encoded, subject)["points"]
                text = _boxes([tuple(each.values()) for each in points])
            case _:
                return "", None
        text = " ".join(text.split())
        return text, text == said


def _boxes(places: Sequence[Sequence[float]]) -> str:
    return " ".join(f"[{' '.join(f'{number:.2f}' for number in place)}]" for place in places)
