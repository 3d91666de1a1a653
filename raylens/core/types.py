"""The nouns of raylens. HTTP dialects parse requests into these types, models answer with them, and
nothing else crosses between processes.

Coordinates are normalized to [0, 1] of the original upright picture, after any EXIF rotation, x to
the right and y down. Times are seconds since the epoch, so that every process and node means the
same.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from raylens.core.recipe import Recipe

REASONING = "reason"
"""The capability, listed beside a model's tasks, of thinking before it answers."""
MAX_OBJECTS = 50
"""Default of ``max_objects`` for detect and point."""


class Length(StrEnum):
    """How long a caption should be."""

    SHORT = "short"
    NORMAL = "normal"
    LONG = "long"


class Detail(StrEnum):
    """How many tiles a picture is cut into: one, as many as its size fills, or the checkpoint's own
    policy."""

    LOW = "low"
    AUTO = "auto"
    HIGH = "high"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Priority(IntEnum):
    """Lower values are scheduled first."""

    INTERACTIVE = 0
    JOB = 1


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    """The answer is complete, and calls tools."""
    ABORT = "abort"
    """The client disconnected, or the deadline passed."""


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """Refers to ``pictures[index]`` of the request."""

    index: int
    detail: Detail = Detail.AUTO


@dataclass(frozen=True)
class VideoPart:
    """Refers to pictures of the request, in order: frames of a video, evenly spaced in time.

    Or to one video file of the request, which preprocessing replaces with frames.
    """

    indices: tuple[int, ...]
    frames_per_second: float = 2.0
    timestamps: tuple[float, ...] = ()
    """Seconds from the start of the video of each frame, if they are known."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in an earlier answer."""

    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True)
class Message:
    """A message of a conversation. Only an assistant's has ``tool_calls``."""

    role: Role
    parts: tuple[TextPart | ImagePart | VideoPart, ...]
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def is_unfinished_answer(self) -> bool:
        """Whether an answer continues this message, if it is the last one: it ends with text."""
        visible = [part for part in self.parts if part != TextPart("")]
        ends_with_text = bool(visible) and isinstance(visible[-1], TextPart)
        return self.role is Role.ASSISTANT and ends_with_text and not self.tool_calls


@dataclass(frozen=True)
class Tool:
    """A function that the answer may call."""

    name: str
    """Letters, digits, and ``_ . : / -``."""
    parameters: str
    """The JSON schema of the arguments."""
    definition: str
    """The whole tool in OpenAI's format, as JSON, for chat templates."""
    field: str = "tools"
    """The request's name of the schema."""


@dataclass(frozen=True)
class Tools:
    """The functions that an answer may call."""

    functions: tuple[Tool, ...]
    required: tuple[str, ...] = ()
    """If not empty, the answer is a call of one of these functions."""
    parallel: bool = True
    """Whether an answer may contain several calls, if none is required."""


@dataclass(frozen=True)
class PixelLimits:
    """Bounds of the area of a resized picture, in pixels. None means the model's own."""

    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Region:
    """A box, normalized to [0, 1]."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class Location:
    """A point, normalized to [0, 1]."""

    x: float
    y: float


@dataclass(frozen=True)
class Caption:
    """Describe the picture."""

    length: Length = Length.NORMAL
    name = "caption"
    prompt_field = "image_url"


@dataclass(frozen=True)
class Query:
    """Answer a question, about the picture if there is one."""

    question: str
    reasoning: bool = False
    """Think first, and return the thoughts beside the answer."""
    spatial_refs: tuple[Location | Region, ...] = ()
    """Points and boxes in the picture that the question is about."""
    name = "query"
    prompt_field = "question"


@dataclass(frozen=True)
class Detect:
    """Find the boxes of at most ``max_objects`` instances of ``subject``."""

    subject: str
    max_objects: int = MAX_OBJECTS
    name = "detect"
    prompt_field = "object"


@dataclass(frozen=True)
class Point:
    """Find the centers of at most ``max_objects`` instances of ``subject``."""

    subject: str
    max_objects: int = MAX_OBJECTS
    name = "point"
    prompt_field = "object"


@dataclass(frozen=True)
class Chat:
    """Answer the last message of a conversation, or continue it if it is an assistant's text."""

    messages: tuple[Message, ...]
    reasoning: bool = False
    """As in :class:`Query`."""
    tools: Tools | None = None
    pixel_limits: PixelLimits | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Values for variables of the model's chat template, as JSON. It need not have them."""
    name = "chat"
    prompt_field = "messages"

    @property
    def continues_answer(self) -> bool:
        """Whether the answer continues the last message."""
        return self.messages[-1].is_unfinished_answer

    @property
    def answer_start(self) -> str:
        """The text that the answer continues; empty if it begins anew."""
        if not self.continues_answer:
            return ""
        return "".join(part.text for part in self.messages[-1].parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class Completion:
    """Continue a text, without a chat template and pictures."""

    text: str
    name = "completion"
    prompt_field = "prompt"


# ``prompt_field`` is the request's field that most of the prompt comes from.
Task = Caption | Query | Detect | Point | Chat | Completion


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled."""

    max_tokens: int = 512
    guaranteed_tokens: int | None = None
    """Tokens that an answer gets even if memory is short; None means ``max_tokens``."""
    min_tokens: int = 0
    """Tokens before which an answer doesn't end."""
    temperature: float = 0.0
    """0 means greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """Sample from this many of the most likely tokens; 0 means all."""
    min_p: float = 0.0
    """Least probability of a token, as a fraction of the most likely token's."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens in the prompt or answer."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer, once for each occurrence."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, besides the model's own."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits."""
    n: int = 1
    """Answers to one prompt."""
    logprobs: int | None = None
    """How many of the most likely tokens to return beside each sampled one; None returns no
    logprobs."""
    json_schema: str | None = None
    """The JSON schema that the answer must follow, as JSON."""


@dataclass(frozen=True)
class PictureFile:
    """A picture as it was sent. ``field`` is the request's name for it, for error messages."""

    data: bytes
    field: str


@dataclass(frozen=True)
class VideoFile:
    """A video as it was sent, and how to sample its frames. ``field`` is as in
    :class:`PictureFile`."""

    data: bytes
    field: str
    frames_per_second: float = 2.0
    max_frames: int | None = None
    """None means the limit's."""


MediaFile = PictureFile | VideoFile


def required_capability(task: Task) -> str:
    """Return the capability that a model needs for ``task``: reasoning, or the task itself."""
    return REASONING if getattr(task, "reasoning", False) else task.name


@dataclass(frozen=True)
class Caller:
    """Who waits for work on a picture, and until when."""

    request_id: str
    deadline: float
    """Unix time, in seconds."""
    client: str = ""
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True)
class VisionRequest:
    """One request, the same for every dialect.

    Its :data:`MediaFile` objects travel beside it, to the preprocessor only.
    """

    id: str
    model: str
    task: Task
    deadline: float
    sampling: SamplingParams = field(default_factory=SamplingParams)
    recipe: Recipe = field(default_factory=Recipe)
    priority: Priority = Priority.INTERACTIVE
    stream: bool = True
    """Whether to send deltas as tokens come. Otherwise each answer is one delta, at its end."""
    client: str = ""
    """Who sends it. Models divide their work fairly among clients."""

    @property
    def tools(self) -> Tools | None:
        """The tools that the answer may call."""
        return self.task.tools if isinstance(self.task, Chat) else None

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.deadline, self.client, self.priority)

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.time()


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer and the logarithm of its probability.

    ``text`` holds U+FFFD if the token is part of a character; ``data`` has the exact bytes. ``top``
    are the most likely tokens at this position, which have no alternatives of their own.
    """

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Grounding:
    """The points that characters ``start`` to ``end`` of a reasoning refer to."""

    start: int
    end: int
    points: tuple[Location, ...]


@dataclass(frozen=True)
class Reasoning:
    """The thoughts before an answer."""

    text: str
    groundings: tuple[Grounding, ...] = ()


@dataclass(frozen=True)
class Findings:
    """What a finished answer contains beside text: boxes, points and thoughts."""

    regions: tuple[Region, ...] | None = None
    locations: tuple[Location, ...] | None = None
    reasoning: Reasoning | None = None


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a tool call. The first piece of each call has its ``name``."""

    index: int
    """Number of the call in its answer."""
    name: str | None = None
    arguments: str = ""
    """Part of a JSON object, as text."""


@dataclass(frozen=True)
class Timings:
    """Seconds of each stage of an answer so far."""

    preprocess: float = 0.0
    """Work on all pictures and videos; several of them may be processed at a time."""
    queue: float = 0.0
    """In the engine, until there is a slot in the batch."""
    prefill: float = 0.0
    """To the first token, the vision encoder included."""
    decode: float = 0.0

    def as_json(self) -> dict[str, float]:
        """Return the milliseconds of each stage."""
        names = ("preprocess", "queue", "prefill", "decode")
        return {f"{name}_ms": round(1000 * getattr(self, name), 1) for name in names}


@dataclass(frozen=True)
class EngineTimings(Timings):
    """What the engine also knows of an answer; it stays in the replica."""

    arrived_at: float = 0.0
    """When the queue began."""
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were in the prefix cache."""


@dataclass(frozen=True)
class Delta:
    """A piece of answer number ``index``.

    The last delta of an answer has a ``finish_reason``, the ``usage``, and the ``findings`` if
    there are any. An earlier one may have the usage so far. The first delta and the last one may
    have ``timings``.
    """

    text: str = ""
    index: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    warnings: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    findings: Findings | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    timings: Timings | None = None
    model: str | None = None
    """Which model answers, if it isn't the one that was asked; in the first delta."""
    held_s: float = field(default=0.0, compare=False)
    """Seconds from when it came until it was passed on; in the first delta."""


@dataclass(frozen=True)
class StepReport:
    """One step of preprocessing: its name, what it did, and the seconds it took."""

    name: str
    did: str
    seconds: float


@dataclass(frozen=True)
class ProcessedPicture:
    """A preprocessed picture as a JPEG file, and the affine map back to the original.

    ``stored``, ``original`` and ``processed`` are (width, height) in pixels: of the file, of the
    upright picture, and of the processed one. A point (x, y) of the processed
    picture is (a·x + b·y + c, d·x + e·y + f) in the original, with ``to_original`` =
    (a, b, c, d, e, f) and all coordinates normalized to [0, 1].
    """

    jpeg: bytes
    stored: tuple[int, int]
    original: tuple[int, int]
    processed: tuple[int, int]
    to_original: tuple[float, float, float, float, float, float]
    steps: tuple[StepReport, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class MemoryUsage:
    """Memory of one replica of a model, in bytes."""

    device: str
    unit: str
    """The GPU's or node's id: replicas with the same one share its memory."""
    total: int
    """Of the GPU or node."""
    allocated: int
    """In use by the replica."""
    reserved: int
    """In use, or kept by the replica's allocator for later."""
    replica: str = ""
    """Host and id of the replica's process."""
    share: int = 0
    """What of ``total`` this replica may reserve; 0 if nothing limits it."""


@dataclass(frozen=True)
class ModelInfo:
    """Description of a loaded model."""

    name: str
    checkpoint: str
    """A hub id, a folder, or a remote server's name for the model."""
    family: str | None
    device: str
    tasks: tuple[str, ...]
    """Names of tasks, and perhaps :data:`REASONING`."""
    dtype: str | None = None
    """The type of its numbers, if it runs in this application."""
    parameters: int | None = None
    """Their number, if it is known."""
    max_pictures: int | None = None
    """Of one request; None if the context alone limits them."""
    frames_as_pictures: int | None = None
    """Frames that stand for a video, because the model reads pictures only; None if it reads
    videos."""
