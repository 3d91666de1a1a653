"""Answers in OpenAI's dialect: chat completions, completions, responses, models, files, batches."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from raylens.api.answers.base import LEFT_OUT, Answer, WithWarnings
from raylens.api.answers.pictures import Grounding


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None


class Function(Answer):
    name: str
    arguments: str
    """An object as JSON."""


class ToolCall(Answer):
    id: str
    type: Literal["function"]
    function: Function


class ReasoningDetails(Answer):
    grounding: list[Grounding]


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] = LEFT_OUT
    reasoning: str = LEFT_OUT
    """Moondream's thoughts."""
    reasoning_details: ReasoningDetails = LEFT_OUT


class Choice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(WithWarnings):
    id: str
    created: int
    model: str
    """The model that answered."""
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(WithWarnings):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]


class OutputMessage(Answer):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    content: list[OutputText]
    status: Literal["in_progress", "completed", "incomplete"]


class FunctionCall(Answer):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]


class SummaryText(Answer):
    type: Literal["summary_text"]
    text: str


class ReasoningItem(Answer):
    type: Literal["reasoning"]
    id: str
    summary: list[SummaryText]
    status: Literal["completed"]


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"]


class ResponseError(Answer):
    code: str
    message: str


class InputTokensDetails(Answer):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Answer):
    reasoning_tokens: int


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Effort(Answer):
    effort: str | None
    summary: None


class TextSettings(Answer):
    format: dict[str, Any]


class Response(WithWarnings):
    """A response. Most fields repeat the request's."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    background: Literal[False]
    error: ResponseError | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: Effort
    store: Literal[False]
    temperature: float
    text: TextSettings
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    status: Literal["completed", "incomplete"]
    incomplete_details: IncompleteDetails | None
    output: list[OutputMessage | FunctionCall | ReasoningItem]
    usage: ResponseUsage | None


class Model(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["raylens"]
    aliases: list[str]


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]


class File(Answer):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class DeletedFile(Answer):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class Page(Answer):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FilePage(Page):
    data: list[File]


class BatchProblem(Answer):
    code: str
    message: str
    param: None
    line: None


class BatchErrors(Answer):
    object: Literal["list"]
    data: list[BatchProblem]


class RequestCounts(Answer):
    total: int
    completed: int
    failed: int


class Batch(Answer):
    id: str
    object: Literal["batch"]
    endpoint: str | None
    errors: BatchErrors | None
    input_file_id: str | None
    completion_window: str | None
    status: Literal["validating", "in_progress", "completed", "failed", "expired", "cancelled"]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchPage(Page):
    data: list[Batch]


class ErrorBody(Answer):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    """The field at fault, as the request calls it."""
    code: str


class Error(BaseModel):
    """An error in OpenAI's dialect."""

    model_config = ConfigDict(extra="forbid", title="OpenAIError")
    error: ErrorBody
