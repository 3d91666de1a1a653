"""Moondream 2 as the engine's model: prompts, pictures, and what its answers say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor

from models.chat import check_length, no_control_tokens, picture_key
from models.decoder import Decoder
from models.graphs import ModelGraphs
from models.linear import Packer
from models.moondream.config import MoondreamConfig, read_config
from models.moondream.crops import Crops, crop
from models.moondream.region import RegionHead
from models.moondream.text import decoder_spec
from models.moondream.token_policy import (
    AnswerKind,
    DecodePlan,
    Embedding,
    MoondreamTokenPolicy,
    PseudoTokens,
)
from models.moondream.vision import VisionEncoder
from models.moondream.weights import ShapeRecorder, Weights
from models.options import DEFAULTS, LoadOptions
from raylens.core.errors import UnsupportedTask
from raylens.core.types import (
    REASONING,
    Caption,
    Chat,
    Detect,
    Findings,
    Grounding,
    ImagePart,
    Location,
    Message,
    Point,
    Query,
    Reasoning,
    Region,
    Task,
    TextPart,
    VideoPart,
    VisionRequest,
)
from raylens.engine.model import (
    KVRows,
    ModelOutput,
    PictureInput,
    Pixels,
    PrefillChunk,
    Prompt,
    TokenPolicy,
)

TASKS = frozenset({Caption.name, Query.name, Detect.name, Point.name, Chat.name, REASONING})
TOKENIZER = "moondream/starmie-v1"


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> Moondream:
    """Loads a checkpoint by hub id or from a folder. Raises ``OSError`` where it can't be found, or
    where a tensor is missing or left over."""
    config, weights, tokenizer = files_of(checkpoint, options)
    packer = Packer(options.device, options.quantize)
    taken = Weights.of_file(weights, packer, options.dtype)
    return Moondream(read_config(config), taken, Tokenizer.from_file(str(tokenizer)), options)


def files_of(checkpoint: str, options: LoadOptions) -> tuple[Path, Path, Path]:
    """Configuration, weights and tokenizer, downloaded where the checkpoint is a hub id. The hub
    has the tokenizer in a repository of its own."""
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder / "config.json", folder / "model.safetensors", folder / "tokenizer.json"
    config, weights = (
        Path(hf_hub_download(checkpoint, name, revision=options.revision))
        for name in ("config.json", "model.safetensors")
    )
    return (
        config,
        weights,
        Path(hf_hub_download(TOKENIZER, "tokenizer.json", revision=options.tokenizer_revision)),
    )


def tensor_shapes(config: MoondreamConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint of this configuration."""
    wanted = ShapeRecorder()
    Moondream(config, wanted, Tokenizer(BPE()), LoadOptions(device="meta"))
    return wanted.shapes


class Moondream:
    """Implements :class:`raylens.engine.model.Model`. Public methods that run the model are not
    thread-safe."""

    tasks = TASKS

    def __init__(
        self,
        config: MoondreamConfig,
        weights: Weights,
        tokenizer: Tokenizer,
        options: LoadOptions = DEFAULTS,
    ) -> None:
        self.config = config
        self.device = options.device
        self.tokenizer = tokenizer
        self._control_tokens = tuple(
            token.content for token in tokenizer.get_added_tokens_decoder().values()
        )
        self.eos_ids = frozenset({config.tokenizer.eos_id})
        self.vocabulary = config.text.vocab_size
        self.max_length = config.text.max_context
        self._ids = PseudoTokens(config.region)
        self._work = options.slice
        graphs = ModelGraphs.on(options.device, options.cuda_graphs)
        self._vision = VisionEncoder(config.vision, weights, options.tiles, graphs.vision)
        self._regions = RegionHead(config.region, weights)
        self.token_policy: TokenPolicy | None = MoondreamTokenPolicy(
            config.tokenizer, self._ids, self._regions
        )
        tokens = weights.tensor("text.wte", config.text.vocab_size, config.text.dim)
        embed = Embedding(tokens, self._ids, self._regions, config.region)
        self._decoder = Decoder(decoder_spec(config.text, weights, embed, tokens), graphs)
        self.kv_shape = self._decoder.kv_shape
        weights.check_all_used()

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        """Implements :meth:`raylens.engine.model.Model.prepare`."""
        task, shown = _single(request.task, pictures)
        ids = self.config.tokenizer
        inputs = [self._input(picture) for picture in shown]
        token_ids = [ids.bos_id] + [ids.bos_id] * sum(picture.tokens for picture in inputs)
        prefix_len, starts = len(token_ids) if inputs else 0, [1] * len(inputs)
        if isinstance(task, Query) and task.spatial_refs:
            refs = self._references(task.spatial_refs)
            inputs.append(refs)
            starts.append(len(token_ids) + len(ids.query.prefix))
        token_ids += self._words(task)
        check_length(request.task, len(token_ids) + _least(task), self.max_length)
        plan = _plan(
            task,
            min(request.sampling.max_tokens, max(1, (self.max_length - len(token_ids) - 2) // 2)),
        )
        finds = plan.kind in (AnswerKind.BOXES, AnswerKind.POINTS)
        return Prompt(
            tuple(token_ids),
            tuple(inputs),
            tuple(starts),
            bidirectional_prefix_len=prefix_len,
            max_output_tokens=_max_output_tokens(plan),
            limit_field="max_objects" if finds else "max_tokens",
            greedy=finds,
            decode_plan=plan,
            depends_on_tokens=plan.kind is AnswerKind.THOUGHTS,
        )

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        """Implements :meth:`raylens.engine.model.Model.encode`."""
        crops = [picture.data for picture in pictures if isinstance(picture.data, Crops)]
        seen = iter((yield from self._vision.slices(crops, self._work)) if crops else ())
        with torch.inference_mode():
            return [
                next(seen)
                if isinstance(picture.data, Crops)
                else self._regions.place_states(picture.data)
                for picture in pictures
            ]

    def prefill(
        self, parts: Sequence[PrefillChunk], rows: Callable[[], Sequence[KVRows]], tokens: int
    ) -> Generator[None, None, ModelOutput]:
        """Implements :meth:`raylens.engine.model.Model.prefill`."""
        return self._decoder.prefill(parts, rows, tokens)

    @torch.inference_mode()
    def decode(
        self, token_ids: Tensor, positions: Sequence[int], groups: Sequence[KVRows]
    ) -> ModelOutput:
        """Implements :meth:`raylens.engine.model.Model.decode`."""
        return self._decoder.decode(token_ids, positions, groups)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        """Implements :meth:`raylens.engine.model.Model.parse_findings`."""
        match prompt.decode_plan.kind:
            case AnswerKind.BOXES:
                return Findings(regions=self._boxes(output_ids))
            case AnswerKind.POINTS:
                return Findings(locations=self._points(output_ids))
            case AnswerKind.THOUGHTS:
                return Findings(reasoning=self._reasoning(output_ids))
        return Findings()

    def _input(self, picture: Pixels) -> PictureInput:
        key = picture_key(picture, "moondream", self.config.vision)
        return PictureInput(key, self.config.vision.grid**2, crop(picture, self.config.vision))

    def _references(self, places: Sequence[Location | Region]) -> PictureInput:
        key = hashlib.blake2b(repr(places).encode(), digest_size=16).digest()
        return PictureInput(key, len(self._placeholders(places)), tuple(places))

    def _placeholders(self, places: Sequence[Location | Region]) -> list[int]:
        """The tokens in whose place a question's places are read."""
        coord, size = self.config.tokenizer.coord_id, self.config.tokenizer.size_id
        of_point, of_box = (coord, coord), (coord, coord, size)
        return [
            token
            for place in places
            for token in (of_box if isinstance(place, Region) else of_point)
        ]

    def _words(self, task: Task) -> list[int]:
        """The prompt behind the picture."""
        ids = self.config.tokenizer
        match task:
            case Caption(length):
                if length not in ids.caption:
                    raise UnsupportedTask(
                        f"length: this checkpoint knows {', '.join(ids.caption)}", "length"
                    )
                return list(ids.caption[length])
            case Query(question, reasoning, places):
                # Upstream says the suffix twice where nothing is thought between.
                last = [ids.thinking_id] if reasoning else ids.query.suffix
                asked = [*self._placeholders(places), *self._encoded(question)]
                return [*ids.query.prefix, *asked, *ids.query.suffix, *last]
            case Detect(subject) | Point(subject):
                template = ids.detect if isinstance(task, Detect) else ids.point
                return [*template.prefix, *self._encoded(f" {subject}"), *template.suffix]
        raise AssertionError(task)

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(no_control_tokens(text, self._control_tokens)).ids
        return ids

    def _boxes(self, output_ids: Sequence[int]) -> tuple[Region, ...]:
        objects = list(zip(*(output_ids[place::3] for place in range(3)), strict=False))
        middles = self._coordinates([object[:2] for object in objects])
        bins = torch.tensor(
            [self._ids.bins_of(size) for _, _, size in objects], dtype=torch.float32
        ).view(-1, 2)
        halves = (self._regions.sizes_of(bins) / 2).tolist()
        return tuple(
            Region(x - width, y - height, x + width, y + height)
            for (x, y), (width, height) in zip(middles, halves, strict=True)
        )

    def _points(self, output_ids: Sequence[int]) -> tuple[Location, ...]:
        pairs = zip(output_ids[::2], output_ids[1::2], strict=False)
        return tuple(Location(x, y) for x, y in self._coordinates(list(pairs)))

    def _coordinates(self, pairs: Sequence[tuple[int, int]]) -> list[list[float]]:
        bins = [[self._ids.bin_of(x), self._ids.bin_of(y)] for x, y in pairs]
        coordinates: list[list[float]] = self._regions.coordinates_of(
            torch.tensor(bins, dtype=torch.float32)
        ).tolist()
        return coordinates

    def _reasoning(self, output_ids: Sequence[int]) -> Reasoning:
        """The thoughts in parts, each of which begins where points begin or end: its text, and the
        points in it."""
        ids = self.config.tokenizer
        parts: list[tuple[list[int], list[int]]] = [([], [])]
        for number in output_ids:
            bin = self._ids.bin_of(number)
            token = ids.coord_id if bin is not None else self._ids.token_of(number)
            if token is None or token == ids.answer_id:
                break
            if token in (ids.start_ground_points_id, ids.end_ground_id):
                parts.append(([], []))
            parts[-1][0].append(token)
            if bin is not None:
                parts[-1][1].append(number)
        text, groundings = "", []
        for tokens, coordinates in parts:
            start, text = len(text), text + self.tokenizer.decode(tokens)
            if points := self._points(coordinates):
                groundings.append(Grounding(start, len(text), points))
        return Reasoning(text, tuple(groundings))


def _single(task: Task, pictures: Sequence[Pixels]) -> tuple[Task, Sequence[Pixels]]:
    """The task as one of those that the checkpoint was trained on, and the picture that it is
    about, where there is one. Raises ``UnsupportedTask``."""
    if not isinstance(task, Chat):
        if len(pictures) > 1:
            raise UnsupportedTask(
                f"{len(pictures)} pictures; this model reads one at a time", "model"
            )
        return task, pictures
    parts = [part for message in task.messages for part in message.parts]
    if any(isinstance(part, VideoPart) for part in parts):
        raise UnsupportedTask("messages: this model reads pictures, but no videos", "messages")
    indices = [part.index for part in parts if isinstance(part, ImagePart)]
    if len(indices) > 1:
        raise UnsupportedTask(
            f"messages: {len(indices)} pictures; this model reads one at a time", "messages"
        )
    return Query(_transcript(task), task.reasoning), [pictures[index] for index in indices]


def _transcript(chat: Chat) -> str:
    """A conversation as one question: what was said before stands in front of the last message."""
    *before, last = ((message.role, _text(message)) for message in chat.messages)
    return "\n".join([*(f"{role}: {text}" for role, text in before), last[1]])


def _text(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _plan(task: Task, max_tokens: int) -> DecodePlan:
    match task:
        case Detect(_, most):
            return DecodePlan(AnswerKind.BOXES, most)
        case Point(_, most):
            return DecodePlan(AnswerKind.POINTS, most)
        case Query(reasoning=True):
            return DecodePlan(AnswerKind.THOUGHTS, max_tokens)
    return DecodePlan(AnswerKind.TEXT)


def _least(task: Task) -> int:
    """Places that an answer needs beside its first: those of one object, and of its end."""
    return 3 if isinstance(task, Detect | Point) else 0


def _max_output_tokens(plan: DecodePlan) -> int | None:
    """Places that an answer takes at most, with its end."""
    match plan.kind:
        case AnswerKind.BOXES:
            return 3 * plan.most + 1
        case AnswerKind.POINTS:
            return 2 * plan.most + 1
        case AnswerKind.THOUGHTS:
            return 2 * plan.most + 2
    return None
