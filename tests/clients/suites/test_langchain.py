import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from scene import BASE_URL, DATA_URL, DESCRIBE, HOW_MANY, WHAT_COLOR


class Count(BaseModel):
    """What the picture shows."""

    count: int


def chat(model: str, **options: object) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=BASE_URL, api_key="none", max_retries=0, **options)


def about_the_picture(text: str) -> HumanMessage:
    picture = {"type": "image_url", "image_url": {"url": DATA_URL}}
    return HumanMessage([{"type": "text", "text": text}, picture])


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_every_method_of_structured_output_answers(method: str) -> None:
    model = chat("qwen2.5-vl").with_structured_output(Count, method=method, include_raw=True)
    reply = model.invoke([about_the_picture(DESCRIBE)])
    if method == "json_mode":  # no schema is sent: any JSON is right
        assert reply["raw"].content.startswith(("{", "["))
    else:
        assert reply["parsed"] == Count(count=3)


def test_a_conversation_of_two_turns_and_a_stream() -> None:
    history = [about_the_picture(HOW_MANY)]
    first = chat("smolvlm").invoke(history)
    assert first.content == "3"
    history += [first, HumanMessage(WHAT_COLOR)]
    assert chat("smolvlm").invoke(history).content == "blue"
    assert "".join(piece.content for piece in chat("smolvlm").stream(history)) == "blue"


def test_tools_are_bound_called_and_answered() -> None:
    @tool
    def report(count: int) -> str:
        """Reports the number of shapes."""
        return f"{count} noted"

    model = chat("qwen2.5-vl").bind_tools([report], tool_choice="report")
    history = [about_the_picture(DESCRIBE)]
    reply = model.invoke(history)
    (call,) = reply.tool_calls
    assert (call["name"], call["args"]) == ("report", {"count": 3})
    result = ToolMessage(report.invoke(call["args"]), tool_call_id=call["id"])
    assert chat("qwen2.5-vl").invoke([*history, reply, result]).response_metadata


def test_the_responses_api() -> None:
    model = chat("smolvlm", use_responses_api=True)
    assert model.invoke([about_the_picture(HOW_MANY)]).text == "3"
