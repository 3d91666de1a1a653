"""The nouns. Every HTTP dialect parses into these, every model answers with these; only these cross
processes.

Coordinates are normalized to [0, 1] of the original picture as it is stored, x to the right, y
down. Times are seconds since the epoch, so that they mean the same in every process and on every
node.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from raylens.core.recipe import Recipe

REASONING = "reason"
"""What a model can, beside tasks, that thinks before it answers."""
MAX_OBJECTS = 50
"""Where a detect or point says nothing else."""


class Length(StrEnum):
    """How long a caption should be."""

    SHORT = "short"
    NORMAL = "normal"
    LONG = "long"


class Detail(StrEnum):
    """How finely a picture is cut into tiles: one tile, by its decoded size, or the checkpoint's
    own policy."""

    LOW = "low"
    AUTO = "auto"
    HIGH = "high"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Priority(IntEnum):
    """Lower goes first."""

    INTERACTIVE = 0
    JOB = 1


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    """Nobody waits for the rest: the client has gone, or the deadline has passed."""


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class ImagePart:
    """Stands for ``images[index]`` of the request."""

    index: int
    detail: Detail = Detail.AUTO


@dataclass(frozen=True)
class VideoPart:
    """Stands for these of the request's images, in order: frames of a video, evenly spaced in time."""

    indices: tuple[int, ...]
    frames_per_second: float = 2.0


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[TextPart | ImagePart | VideoPart, ...]


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
    """Describe the one picture."""

    length: Length = Length.NORMAL
    name = "caption"


@dataclass(frozen=True)
class Query:
    """Answer a question, about the one picture where there is one.

    ``reasoning``: think first, and tell the thoughts. ``places``: what in the picture the question
    is about.
    """

    question: str
    reasoning: bool = False
    spatial_refs: tuple[Location | Region, ...] = ()
    name = "query"


@dataclass(frozen=True)
class Detect:
    """Find the boxes of all instances of ``subject``, up to ``max_objects``."""

    subject: str
    max_objects: int = MAX_OBJECTS
    name = "detect"


@dataclass(frozen=True)
class Point:
    """Find the centers of all instances of ``subject``, up to ``max_objects``."""

    subject: str
    max_objects: int = MAX_OBJECTS
    name = "point"


@dataclass(frozen=True)
class Chat:
    """Answer the last of these messages. ``reasoning``: as in :class:`Query`."""

    messages: tuple[Message, ...]
    reasoning: bool = False
    name = "chat"


Task = Caption | Query | Detect | Point | Chat


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``n`` answers are drawn for one prompt."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """The most likely tokens to choose from; 0 means all."""
    min_p: float = 0.0
    """The least probability to choose from, as a share of the most likely token's."""
    repetition_penalty: float = 1.0
    """Divides the positive logits, and multiplies the negative ones, of what the prompt and the
    answer hold."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer holds."""
    frequency_penalty: float = 0.0
    """The same, times how often the answer holds them."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    """How many of the most likely tokens are told beside each chosen one; None tells nothing."""
    json_schema: str | None = None
    """A JSON schema, as JSON, that the answer follows."""


@dataclass(frozen=True)
class PictureFile:
    """A picture as it was sent, and what the sender calls it: the request's field, for messages."""

    data: bytes
    field: str


@dataclass(frozen=True)
class VisionRequest:
    """One request, the same for every dialect. Its :class:`PictureFile` travel beside it, to the
    preprocessor only."""

    id: str
    model: str
    task: Task
    deadline: float
    sampling: SamplingParams = field(default_factory=SamplingParams)
    recipe: Recipe = field(default_factory=Recipe)
    priority: Priority = Priority.INTERACTIVE
    stream: bool = True
    """Whether pieces of an answer are wanted as they come; else each answer is one delta, at its
    end."""

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative past it."""
        return self.deadline - time.time()


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, the logarithm of its probability, and the most likely ones in its place
    (no alternatives of their own). ``text`` may hold U+FFFD where the token is a part of a
    character; ``data`` is exact."""

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Grounding:
    """The points that a part of the thoughts speaks of: characters ``start`` to ``end`` of their
    text."""

    start: int
    end: int
    points: tuple[Location, ...]


@dataclass(frozen=True)
class Reasoning:
    """What was thought before an answer."""

    text: str
    groundings: tuple[Grounding, ...] = ()


@dataclass(frozen=True)
class Findings:
    """What a finished answer says beside its text: the boxes of a detect, the points of a point,
    and thoughts."""

    regions: tuple[Region, ...] | None = None
    locations: tuple[Location, ...] | None = None
    reasoning: Reasoning | None = None


@dataclass(frozen=True)
class Delta:
    """A piece of answer number ``index``. The last one of an answer has a ``finish_reason`` and its
    ``usage``.

    The last one also has what was ``found``, where the answer says more than its text.
    """

    text: str = ""
    index: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    warnings: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    findings: Findings | None = None


@dataclass(frozen=True)
class Step:
    """One step of preprocessing, what it did in words, and the seconds that it took."""

    name: str
    did: str
    seconds: float


@dataclass(frozen=True)
class ProcessedPicture:
    """A picture as a model would see it: a JPEG file, and the map from its coordinates back to the
    original's.

    ``original`` and ``processed`` are (width, height) in pixels. A point (x, y) of the processed
    picture is (a·x + b·y + c, d·x + e·y + f) in the original, for ``to_original`` = (a, b, c, d, e,
    f), all normalized to [0, 1].
    """

    jpeg: bytes
    original: tuple[int, int]
    processed: tuple[int, int]
    to_original: tuple[float, float, float, float, float, float]
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """What a loaded model is and can do."""

    name: str
    checkpoint: str
    family: str
    device: str
    tasks: tuple[str, ...]
