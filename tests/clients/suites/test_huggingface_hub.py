import json

from huggingface_hub import InferenceClient
from scene import BASE_URL, DESCRIBE, HOW_MANY, WHAT_COLOR, ask

SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
client = InferenceClient(base_url=BASE_URL, api_key="none")


def test_two_turns_and_a_stream() -> None:
    messages = ask(HOW_MANY)
    first = client.chat_completion(messages, model="smolvlm").choices[0].message
    assert first.content == "3"
    turns = [*messages, first, {"role": "user", "content": WHAT_COLOR}]
    assert client.chat_completion(turns, model="smolvlm").choices[0].message.content == "blue"
    pieces = client.chat_completion(turns, model="smolvlm", stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == "blue"


def test_a_schema_in_both_forms() -> None:
    for response_format in (
        {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA}},
        {"type": "json_object", "value": SCHEMA},
    ):
        reply = client.chat_completion(
            ask(DESCRIBE), model="qwen2.5-vl", response_format=response_format
        )
        assert json.loads(reply.choices[0].message.content) == {"count": 3}


def test_a_tool() -> None:
    parameters = {
        "type": "object",
        "properties": {"count": {"type": "integer"}},
        "required": ["count"],
    }
    tool = {"type": "function", "function": {"name": "report", "parameters": parameters}}
    reply = client.chat_completion(
        ask(DESCRIBE), model="qwen2.5-vl", tools=[tool], tool_choice="required"
    )
    (call,) = reply.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"count": 3}
