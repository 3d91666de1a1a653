"""Answers of the caption service, of the generate service, of pipelines, and of health routes."""

from __future__ import annotations

from typing import Any, Literal

from raylens.api.answers.base import LEFT_OUT, Answer, Box, WithWarnings


class Caption(WithWarnings):
    caption: str
    model: str
    processing_time: float


class Description(WithWarnings):
    description: str
    model: str
    processing_time: float


class Counted(Answer):
    count: int | None
    objects: list[Box] = LEFT_OUT
    """Boxes, if the model can detect."""
    description: str = LEFT_OUT
    """The model's answer, if it can't."""


class Described(Answer):
    description: str


class Unusual(Answer):
    found: bool
    description: str


class Surveillance(WithWarnings):
    summary: str
    people: Counted
    vehicles: Counted
    activities: Described
    unusual: Unusual
    model: str
    processing_time: float


class Queue(Answer):
    capacity: int
    workers: int


class ModelInfo(Answer):
    model: str
    family: str | None
    checkpoint: str
    device: str
    dtype: str | None
    tasks: list[str]
    parameters: int | None
    max_image_size: int | None
    queue: Queue | None


class QueuedCaption(Answer):
    job_id: str
    status: str


class CaptionJob(Answer):
    job_id: str
    status: str
    caption: str | None
    error: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class QueueStats(Answer):
    waiting: int
    running: int
    done: int
    failed: int
    canceled: int
    capacity: int
    workers: int
    mean_seconds: float | None
    p95_seconds: float | None


class GenerateUsage(Answer):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class Generated(WithWarnings):
    response: str
    usage: GenerateUsage
    processing_time: float


class Memory(Answer):
    """Memory in GiB."""

    device: Literal["cpu", "cuda"]
    allocated_gb: float
    reserved_gb: float
    free_gb: float
    total_gb: float
    usage_percentage: float
    replicas: int


class Cleared(Answer):
    message: str
    device: Literal["cpu", "cuda"]
    freed_gb: float
    before: Memory
    after: Memory


class Pipeline(Answer):
    id: str
    name: str
    description: str
    version: str
    config_schema: dict[str, Any]
    plugin_name: str | None


class Pipelines(Answer):
    pipelines: dict[str, Pipeline]


class Message(Answer):
    message: str


class LoadedPipeline(Answer):
    status: Literal["not_loaded", "loading", "loaded", "error"]
    pipeline_id: str | None
    load_params: dict[str, Any] | None
    error: str | None


class Plugins(Answer):
    plugins: list[dict[str, Any]]
    total: int
    failed_plugins: list[dict[str, Any]]


class IceServers(Answer):
    iceServers: list[dict[str, Any]]


class SessionAnswer(Answer):
    sdp: str
    type: Literal["answer"]
    sessionId: str


class SessionState(Answer):
    sessionId: str
    status: Literal["new", "connecting", "connected", "ended"]
    reason: str
    """Why it has ended."""
    measured_fps: float | None
    frames: dict[str, int]
    dropped_results: int
    """Messages that the client was too slow for."""


class Alive(Answer):
    status: Literal["alive"]


class Ready(Answer):
    status: Literal["ready"]
    on_demand: dict[str, str] = LEFT_OUT
    """Models that the next request loads, or that are being loaded for one."""


class NotReady(Answer):
    status: Literal["not ready"]
    waiting_for: list[str]
    on_demand: dict[str, str] = LEFT_OUT


class Drains(Answer):
    """What Serve's proxy answers for a server that drains."""

    status: Literal["draining"]
    requests: int
    jobs: int = LEFT_OUT


class ModelState(Answer):
    loaded: bool
    checkpoint: str = LEFT_OUT
    family: str | None = LEFT_OUT
    device: str = LEFT_OUT
    tasks: list[str] = LEFT_OUT
    max_pictures: int | None = LEFT_OUT
    frames_as_pictures: int | None = LEFT_OUT


class Health(Answer):
    status: Literal["healthy", "degraded"]
    model_loaded: bool
    device: str | None
    active_model: str
    timestamp: str
    models: dict[str, ModelState]


class Error(Answer):
    """An error in every dialect but OpenAI's and Ollama's."""

    detail: str
