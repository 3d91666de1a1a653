"""Answers in Ollama's dialect."""

from __future__ import annotations

from typing import Any, Literal

from raylens.api.answers.base import LEFT_OUT, Answer, WithWarnings


class Function(Answer):
    name: str
    arguments: dict[str, Any]


class ToolCall(Answer):
    function: Function


class Message(Answer):
    role: Literal["assistant"]
    content: str
    thinking: str = LEFT_OUT
    tool_calls: list[ToolCall] = LEFT_OUT


class Timed(WithWarnings):
    """What ends an answer. Durations are in nanoseconds; a request that only loads has none."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"]
    total_duration: int = LEFT_OUT
    load_duration: int = LEFT_OUT
    prompt_eval_count: int = LEFT_OUT
    prompt_eval_duration: int = LEFT_OUT
    eval_count: int = LEFT_OUT
    eval_duration: int = LEFT_OUT


class ChatAnswer(Timed):
    message: Message


class GenerateAnswer(Timed):
    response: str
    thinking: str = LEFT_OUT
    context: list[int] = LEFT_OUT


class Details(Answer):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Model(Answer):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Models(Answer):
    models: list[Model]


class LoadedModel(Model):
    expires_at: str
    size_vram: int


class LoadedModels(Answer):
    models: list[LoadedModel]


class ShownModel(Model):
    modelfile: str
    parameters: str
    template: str
    license: str
    model_info: dict[str, str]
    capabilities: list[str]


class Version(Answer):
    version: str


class Error(Answer):
    """An error in Ollama's dialect."""

    error: str
