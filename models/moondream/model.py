"""Moondream 2 as a model of the engine: prompts, pictures, and the findings in answers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor

from models.chat import (
    break_control_tokens,
    check_prompt_length,
    image_parts,
    message_text,
    picture_key,
    refuse_pixel_limits,
    tool_call_style,
)
from models.decoder import Decoder
from models.graphs import ModelGraphs
from models.hub import config_path
from models.linear import WeightPacker
from models.moondream.config import MoondreamConfig, read_config
from models.moondream.crops import Crops, crop, stretched_size
from models.moondream.family import FAMILY, TOKENIZER, MoondreamSettings
from models.moondream.moonfile import is_moonfile, read_moonfile
from models.moondream.region import RegionHead
from models.moondream.text import decoder_spec
from models.moondream.token_policy import (
    AnswerType,
    DecodePlan,
    Embedding,
    MoondreamTokenPolicy,
    PseudoTokens,
)
from models.moondream.vision import VisionEncoder
from models.moondream.weights import ShapeRecorder, Weights
from models.options import DEFAULTS, LoadOptions
from models.sizing import Footprint
from raylens.core.errors import UnsupportedTask, picture_field
from raylens.core.types import (
    REASONING,
    Caption,
    Chat,
    Completion,
    Detect,
    Findings,
    Grounding,
    Location,
    Point,
    Query,
    Reasoning,
    Region,
    Task,
    VisionRequest,
)
from raylens.engine.model import (
    KVRows,
    Model,
    ModelOutput,
    PictureInput,
    Pixels,
    PrefillChunk,
    Prompt,
    TokenPolicy,
)


def load(checkpoint: str, options: LoadOptions = DEFAULTS) -> Moondream:
    """Load a checkpoint by hub id, from a folder, or from a ``.mf`` file.

    Raises ``OSError`` if the checkpoint is not found, or if a tensor is missing or unknown.
    """
    packer = WeightPacker(options.device, options.quantize)
    if is_moonfile(checkpoint):
        moonfile = read_moonfile(Path(checkpoint))
        names = tensor_shapes(moonfile.config)
        weights = Weights(names, moonfile.tensor, packer, options.dtype)
        return Moondream(moonfile.config, weights, moonfile.tokenizer, options)
    config_file, weights_path, tokenizer_path = checkpoint_files(checkpoint, options)
    weights = Weights.from_file(weights_path, packer, options.dtype)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    return Moondream(read_config(config_file), weights, tokenizer, options)


def checkpoint_files(checkpoint: str, options: LoadOptions) -> tuple[Path, Path, Path]:
    """Return the paths of configuration, weights and tokenizer.

    Downloads the files if the checkpoint is a hub id. On the hub, the tokenizer has a repository of
    its own.
    """
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder / "config.json", folder / "model.safetensors", folder / "tokenizer.json"
    return (
        _download(checkpoint, "config.json", options.revision),
        _download(checkpoint, "model.safetensors", options.revision),
        _download(
            TOKENIZER,
            "tokenizer.json",
            options.family_settings(MoondreamSettings).tokenizer_revision,
        ),
    )


def _download(repository: str, file: str, revision: str | None) -> Path:
    return Path(hf_hub_download(repository, file, revision=revision))


def read_footprint(checkpoint: str, revision: str | None) -> Footprint:
    """Read a checkpoint's footprint. Raises ``OSError`` if there is no such checkpoint."""
    if is_moonfile(checkpoint):
        config = read_moonfile(Path(checkpoint)).config
    else:
        config = read_config(config_path(checkpoint, revision))
    text = config.text
    return Footprint(
        sum(map(math.prod, tensor_shapes(config).values())),
        2 * text.n_layers * text.n_kv_heads * text.head_dim,
    )


def tensor_shapes(config: MoondreamConfig) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a checkpoint with this configuration."""
    recorder = ShapeRecorder()
    Moondream(config, recorder, Tokenizer(BPE()), LoadOptions(device="meta"))
    return recorder.shapes


class Moondream(Model):
    """A loaded checkpoint. Methods that run the model are not thread-safe."""

    max_pictures = 1
    frames_as_pictures = 1

    def __init__(
        self,
        config: MoondreamConfig,
        weights: Weights,
        tokenizer: Tokenizer,
        options: LoadOptions = DEFAULTS,
    ) -> None:
        self.config = config
        can_reason = config.tokenizer.thinking_id is not None
        self.tasks = FAMILY.tasks if can_reason else FAMILY.tasks - {REASONING}
        self.device = options.device
        self.tokenizer = tokenizer
        self._control_tokens = tuple(
            token.content for token in tokenizer.get_added_tokens_decoder().values()
        )
        self.eos_ids = frozenset({config.tokenizer.eos_id})
        self.vocab_size = config.text.vocab_size
        self.max_length = config.text.max_context
        self._pseudo_tokens = PseudoTokens(config.region)
        self._slice_size = options.slice_size
        graphs = ModelGraphs.create(options.device, options.cuda_graphs)
        self._vision_encoder = VisionEncoder(
            config.vision, weights, options.tiles_per_batch, graphs.vision
        )
        self._regions = RegionHead(config.region, weights)
        self.token_policy: TokenPolicy | None = MoondreamTokenPolicy(
            config.tokenizer, self._pseudo_tokens, self._regions
        )
        tokens = weights.tensor("text.wte", config.text.vocab_size, config.text.dim)
        embedding = Embedding(tokens, self._pseudo_tokens, self._regions, config.region)
        self._decoder = Decoder(decoder_spec(config.text, weights, embedding, tokens), graphs)
        self.kv_spec = self._decoder.kv_spec
        weights.check_all_used()
        self.parameters = weights.parameters

    def prepare(self, request: VisionRequest, pictures: Sequence[Pixels]) -> Prompt:
        refuse_pixel_limits(request.task)
        continuation = _continued_text(request.task)
        task, pictures = _with_one_picture(request.task, pictures)
        tokenizer = self.config.tokenizer
        inputs = [self._picture_input(picture) for picture in pictures]
        image_tokens = sum(picture.num_tokens for picture in inputs)
        token_ids = [tokenizer.bos_id] * (1 + image_tokens)
        prefix_len = len(token_ids) if inputs else 0
        starts = [1] * len(inputs)
        if isinstance(task, Query) and task.spatial_refs:
            inputs.append(self._spatial_refs_input(task.spatial_refs))
            starts.append(len(token_ids) + len(tokenizer.query.prefix))
        token_ids += self._task_tokens(task)
        if continuation is not None:
            token_ids += self._encode_text(continuation)
        check_prompt_length(
            request.task, len(token_ids) + _min_tokens_after_first(task), self.max_length
        )
        # Reasoning and the text after it take max_tokens each: both must fit into the context.
        half = (self.max_length - len(token_ids) - 2) // 2
        plan = _decode_plan(task, min(request.sampling.max_tokens, max(1, half)))
        continues = continuation is not None or isinstance(task, Completion)
        lists_objects = plan.answer_type in (AnswerType.BOXES, AnswerType.POINTS)
        return Prompt(
            tuple(token_ids),
            tuple(inputs),
            tuple(starts),
            bidirectional_prefix_len=prefix_len,
            max_output_tokens=_max_output_tokens(plan),
            limit_field="max_objects" if lists_objects else None,
            greedy=lists_objects,
            continues_answer=continues,
            leading_space=not continues,
            tool_call_style=tool_call_style(request.tools, knows_tools=False),
            decode_plan=plan,
            policy_reads_token_ids=plan.answer_type is AnswerType.REASONING,
        )

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return stretched_size(width, height, self.config.vision)

    def encode(self, pictures: Sequence[PictureInput]) -> Generator[None, None, list[Tensor]]:
        crops = [picture.data for picture in pictures if isinstance(picture.data, Crops)]
        encoded: list[Tensor] = []
        if crops:
            encoded = yield from self._vision_encoder.encode_in_slices(crops, self._slice_size)
        picture_features = iter(encoded)
        with torch.inference_mode():
            features = []
            for picture in pictures:
                if isinstance(picture.data, Crops):
                    features.append(next(picture_features))
                else:
                    features.append(self._regions.encode_spatial_refs(picture.data))
            return features

    def prefill(
        self,
        chunks: Sequence[PrefillChunk],
        get_rows: Callable[[], Sequence[KVRows]],
        max_slice_tokens: int,
    ) -> Generator[None, None, ModelOutput]:
        return self._decoder.prefill(chunks, get_rows, max_slice_tokens)

    @torch.inference_mode()
    def decode(
        self, token_ids: Tensor, positions: Sequence[int], rows_by_arena: Sequence[KVRows]
    ) -> ModelOutput:
        return self._decoder.decode(token_ids, positions, rows_by_arena)

    def parse_findings(self, prompt: Prompt, output_ids: Sequence[int]) -> Findings:
        match prompt.decode_plan.answer_type:
            case AnswerType.BOXES:
                return Findings(regions=self._boxes(output_ids))
            case AnswerType.POINTS:
                return Findings(locations=self._points(output_ids))
            case AnswerType.REASONING:
                return Findings(reasoning=self._reasoning(output_ids))
        return Findings()

    def _picture_input(self, picture: Pixels) -> PictureInput:
        key = picture_key(picture, "moondream", self.config.vision)
        return PictureInput(key, self.config.vision.grid**2, crop(picture, self.config.vision))

    def _spatial_refs_input(self, spatial_refs: Sequence[Location | Region]) -> PictureInput:
        """Return a question's spatial references as an input whose features replace tokens."""
        key = hashlib.blake2b(repr(spatial_refs).encode(), digest_size=16).digest()
        return PictureInput(key, len(self._placeholders(spatial_refs)), tuple(spatial_refs))

    def _placeholders(self, spatial_refs: Sequence[Location | Region]) -> list[int]:
        """Return the tokens that the features of the spatial references replace."""
        coord_id = self.config.tokenizer.coord_id
        tokens: list[int] = []
        for ref in spatial_refs:
            tokens += [coord_id, coord_id]
            if isinstance(ref, Region):
                tokens.append(self.config.tokenizer.size_id)
        return tokens

    def _task_tokens(self, task: Task) -> list[int]:
        """Return the tokens of the prompt after the picture. Raises ``UnsupportedTask``."""
        tokenizer = self.config.tokenizer
        match task:
            case Caption(length):
                if length not in tokenizer.caption:
                    supported = ", ".join(tokenizer.caption)
                    raise UnsupportedTask(
                        f"length: {length} is not supported by this checkpoint;"
                        f" supported: {supported}",
                        "length",
                    )
                return list(tokenizer.caption[length])
            case Query(question, reasoning, spatial_refs):
                template = tokenizer.query
                text = [*self._placeholders(spatial_refs), *self._encode_text(question)]
                prompt = [*template.prefix, *text, *template.suffix]
                if tokenizer.thinking_id is None:
                    return prompt
                # Upstream repeats the suffix if there is no reasoning.
                return [*prompt, *([tokenizer.thinking_id] if reasoning else template.suffix)]
            case Completion(text):
                return self._encode_text(text)
            case Detect(subject) | Point(subject):
                template = tokenizer.detect if isinstance(task, Detect) else tokenizer.point
                return [*template.prefix, *self._encode_text(f" {subject}"), *template.suffix]
        raise AssertionError(task)

    def _encode_text(self, text: str) -> list[int]:
        """Encode a user's text. Control tokens in it stay plain text."""
        ids: list[int] = self.tokenizer.encode(break_control_tokens(text, self._control_tokens)).ids
        return ids

    def _boxes(self, output_ids: Sequence[int]) -> tuple[Region, ...]:
        """Parse x, y and size of each complete box."""
        end = len(output_ids) // 3 * 3
        centers = self._coordinates(output_ids[0:end:3], output_ids[1:end:3])
        size_bins = [
            self._pseudo_tokens.decode_size(output_id) for output_id in output_ids[2:end:3]
        ]
        bins = torch.tensor(size_bins, dtype=torch.float32).view(-1, 2)
        half_sizes = (self._regions.bins_to_sizes(bins) / 2).tolist()
        return tuple(
            Region(x - half_width, y - half_height, x + half_width, y + half_height)
            for (x, y), (half_width, half_height) in zip(centers, half_sizes, strict=True)
        )

    def _points(self, output_ids: Sequence[int]) -> tuple[Location, ...]:
        """Parse x and y of each complete point."""
        end = len(output_ids) // 2 * 2
        points = self._coordinates(output_ids[0:end:2], output_ids[1:end:2])
        return tuple(Location(x, y) for x, y in points)

    def _coordinates(self, x_ids: Sequence[int], y_ids: Sequence[int]) -> list[list[float]]:
        """Return the pairs (x, y) of coordinates."""
        decode = self._pseudo_tokens.decode_coordinate
        bins = [[decode(x_id), decode(y_id)] for x_id, y_id in zip(x_ids, y_ids, strict=True)]
        coordinates: list[list[float]] = self._regions.bins_to_coordinates(
            torch.tensor(bins, dtype=torch.float32)
        ).tolist()
        return coordinates

    def _reasoning(self, output_ids: Sequence[int]) -> Reasoning:
        """Parse the text of the reasoning and the points of its parts.

        As upstream, a part begins at each token that starts or ends points.
        """
        tokenizer = self.config.tokenizer
        token_parts: list[list[int]] = [[]]
        coordinate_parts: list[list[int]] = [[]]
        for output_id in output_ids:
            is_coordinate = self._pseudo_tokens.decode_coordinate(output_id) is not None
            token = self._pseudo_tokens.decode_reasoning(output_id)
            if is_coordinate:
                token = tokenizer.coord_id
            if token is None or token == tokenizer.answer_id:
                break
            if token in (tokenizer.start_ground_points_id, tokenizer.end_ground_id):
                token_parts.append([])
                coordinate_parts.append([])
            token_parts[-1].append(token)
            if is_coordinate:
                coordinate_parts[-1].append(output_id)
        text = ""
        groundings = []
        for tokens, coordinate_ids in zip(token_parts, coordinate_parts, strict=True):
            start = len(text)
            text += self.tokenizer.decode(tokens)
            if points := self._points(coordinate_ids):
                groundings.append(Grounding(start, len(text), points))
        return Reasoning(text, tuple(groundings))


def _with_one_picture(task: Task, pictures: Sequence[Pixels]) -> tuple[Task, Sequence[Pixels]]:
    """Return the task with at most one picture. A chat becomes a query.

    Raises ``UnsupportedTask`` if there are several pictures, or if there is a video.
    """
    if not isinstance(task, Chat):
        if len(pictures) > 1:
            raise UnsupportedTask(
                f"model: {len(pictures)} pictures; the limit is 1 for this model", "model"
            )
        return task, pictures
    indices = [part.index for part in image_parts(task.messages)]
    if len(indices) > 1:
        field = picture_field(indices[1])
        message = f"{field}: {len(indices)} pictures; the limit is 1 for this model"
        raise UnsupportedTask(message, field)
    query = Query(_flatten_chat(task), task.reasoning)
    return query, [pictures[index] for index in indices]


def _flatten_chat(chat: Chat) -> str:
    """Return the text of the last message after a transcript of the earlier ones.

    A last message that the answer continues is left out.
    """
    messages = chat.messages[:-1] if chat.continues_answer else chat.messages
    if not messages:
        return ""
    *earlier, last = messages
    lines = [f"{message.role}: {message_text(message)}" for message in earlier]
    return "\n".join([*lines, message_text(last)])


def _continued_text(task: Task) -> str | None:
    """Return the text that the answer continues, or None if it is a new one.

    Answers begin with a space.
    """
    if not isinstance(task, Chat) or not task.continues_answer:
        return None
    if task.reasoning:
        raise UnsupportedTask(
            "reasoning: not supported if the last message is the assistant's", "reasoning"
        )
    text = message_text(task.messages[-1])
    return text if text[:1].isspace() else f" {text}"


def _decode_plan(task: Task, max_tokens: int) -> DecodePlan:
    match task:
        case Detect():
            return DecodePlan(AnswerType.BOXES, max_objects=task.max_objects)
        case Point():
            return DecodePlan(AnswerType.POINTS, max_objects=task.max_objects)
        case Query(reasoning=True):
            return DecodePlan(AnswerType.REASONING, max_tokens=max_tokens)
    return DecodePlan(AnswerType.TEXT)


def _min_tokens_after_first(task: Task) -> int:
    """Return how many output ids after the first one the context must have room for.

    A list of objects needs room for one object, which takes up to three ids, and for its end.
    """
    return 3 if isinstance(task, Detect | Point) else 0


def _max_output_tokens(plan: DecodePlan) -> int | None:
    """Return the limit of output ids, the end included; None if it is the request's."""
    match plan.answer_type:
        case AnswerType.BOXES:
            return 3 * plan.max_objects + 1
        case AnswerType.POINTS:
            return 2 * plan.max_objects + 1
        case AnswerType.REASONING:
            return 2 * plan.max_tokens + 2
    return None
