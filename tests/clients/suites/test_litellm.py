import json

import litellm
from pydantic import BaseModel
from scene import BASE_URL, DESCRIBE, HOW_MANY, SERVER, WHAT_COLOR, ask


class Count(BaseModel):
    count: int


def complete(model: str, messages: list, **options: object) -> object:
    return litellm.completion(
        model=f"openai/{model}", api_base=BASE_URL, api_key="none", messages=messages, **options
    )


def test_two_turns_and_a_stream() -> None:
    messages = ask(HOW_MANY)
    first = complete("smolvlm", messages).choices[0].message
    assert first.content == "3"
    for message in (first, first.model_dump()):
        turns = [*messages, message, {"role": "user", "content": WHAT_COLOR}]
        assert complete("smolvlm", turns).choices[0].message.content == "blue"
    pieces = complete("smolvlm", turns, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "blue"


def test_a_schema_and_a_tool() -> None:
    reply = complete("qwen2.5-vl", ask(DESCRIBE), response_format=Count)
    assert json.loads(reply.choices[0].message.content) == {"count": 3}
    parameters = Count.model_json_schema()
    tool = {"type": "function", "function": {"name": "report", "parameters": parameters}}
    reply = complete("qwen2.5-vl", ask(DESCRIBE), tools=[tool], tool_choice="required")
    (call,) = reply.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"count": 3}


def test_as_ollama() -> None:
    reply = litellm.completion(model="ollama_chat/smolvlm", api_base=SERVER, messages=ask(HOW_MANY))
    assert reply.choices[0].message.content == "3"
