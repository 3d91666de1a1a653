import json

import openai
import pytest
from pydantic import BaseModel
from scene import BASE_URL, DATA_URL, DESCRIBE, HOW_MANY, WHAT_COLOR, ask

MODELS = ("moondream", "smolvlm", "qwen2.5-vl")
client = openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0)


class Count(BaseModel):
    count: int


COUNT_TOOL = {
    "type": "function",
    "function": {
        "name": "report",
        "description": "Reports what the picture shows.",
        "parameters": Count.model_json_schema(),
    },
}


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_goes_on_with_the_message_as_it_came(model: str) -> None:
    messages = ask(HOW_MANY)
    first = client.chat.completions.create(model=model, messages=messages)
    assert first.choices[0].message.content == "3"
    for message in (
        first.choices[0].message,
        first.choices[0].message.model_dump(),
        json.loads(first.choices[0].message.model_dump_json()),
    ):
        turns = [*messages, message, {"role": "user", "content": WHAT_COLOR}]
        second = client.chat.completions.create(model=model, messages=turns)
        assert second.choices[0].message.content == "blue"


def test_a_stream_equals_the_answer() -> None:
    stream = client.chat.completions.create(
        model="smolvlm",
        messages=ask("Describe this image."),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith("a red circle at the ")
    assert chunks[-1].usage.completion_tokens > 5


def test_parse_returns_an_object_and_the_conversation_goes_on() -> None:
    messages = ask(DESCRIBE)
    reply = client.chat.completions.parse(
        model="qwen2.5-vl", messages=messages, response_format=Count
    )
    message = reply.choices[0].message
    assert message.parsed == Count(count=3)
    turns = [*messages, message.model_dump(), {"role": "user", "content": WHAT_COLOR}]
    second = client.chat.completions.create(model="qwen2.5-vl", messages=turns)
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "report"}}]
)
def test_a_forced_tool_is_called_and_its_result_is_taken(choice: object) -> None:
    messages = ask(DESCRIBE)
    reply = client.chat.completions.create(
        model="qwen2.5-vl", messages=messages, tools=[COUNT_TOOL], tool_choice=choice
    )
    message = reply.choices[0].message
    (call,) = message.tool_calls
    assert reply.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("report", {"count": 3})
    result = {"role": "tool", "tool_call_id": call.id, "content": "Thanks."}
    turns = [*messages, message.model_dump(), result]
    second = client.chat.completions.create(model="qwen2.5-vl", messages=turns, tools=[COUNT_TOOL])
    assert second.choices[0].finish_reason in ("stop", "tool_calls")


def test_a_streamed_tool_call_is_whole() -> None:
    with client.chat.completions.stream(
        model="qwen2.5-vl", messages=ask(DESCRIBE), tools=[COUNT_TOOL], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"count": 3}


def picture_input(text: str) -> list[dict[str, object]]:
    content = [
        {"type": "input_text", "text": text},
        {"type": "input_image", "image_url": DATA_URL, "detail": "auto"},
    ]
    return [{"role": "user", "content": content}]


def test_responses_without_state() -> None:
    first = client.responses.create(model="smolvlm", input=picture_input(HOW_MANY), store=False)
    assert first.output_text == "3"
    assert first.usage.total_tokens == first.usage.input_tokens + first.usage.output_tokens
    history = [*picture_input(HOW_MANY), *first.output, {"role": "user", "content": WHAT_COLOR}]
    assert client.responses.create(model="smolvlm", input=history).output_text == "blue"
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model="smolvlm", input="And now?", previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError, match="store"):
        client.responses.create(model="smolvlm", input="Hello", store=True)


def test_responses_parse_and_stream() -> None:
    reply = client.responses.parse(
        model="qwen2.5-vl", input=picture_input(DESCRIBE), text_format=Count
    )
    assert reply.output_parsed == Count(count=3)
    with client.responses.stream(model="smolvlm", input=picture_input(HOW_MANY)) as stream:
        events = [event.type for event in stream]
        assert stream.get_final_response().output_text == "3"
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"
    assert "response.output_text.delta" in events


def test_responses_call_tools() -> None:
    tool = {"type": "function", "strict": False, **COUNT_TOOL["function"]}
    reply = client.responses.create(
        model="qwen2.5-vl", input=picture_input(DESCRIBE), tools=[tool], tool_choice="required"
    )
    (call,) = reply.output
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "report",
        {"count": 3},
    )
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "Thanks."}
    history = [*picture_input(DESCRIBE), call, output]
    again = client.responses.create(model="qwen2.5-vl", input=history, tools=[tool])
    assert again.status == "completed"
