import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from scene import BASE_URL, DESCRIBE, FILE, HOW_MANY, WHAT_COLOR

PROVIDER = OpenAIProvider(base_url=BASE_URL, api_key="none")
PICTURE = BinaryContent(FILE.read_bytes(), media_type="image/png")


class Count(BaseModel):
    """What the picture shows."""

    count: int


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_text_over_two_turns(model: type) -> None:
    agent = Agent(model("smolvlm", provider=PROVIDER))
    first = agent.run_sync([HOW_MANY, PICTURE])
    assert first.output == "3"
    second = agent.run_sync(WHAT_COLOR, message_history=first.all_messages())
    assert second.output == "blue"


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
def test_the_default_output_is_an_object(model: type) -> None:
    agent = Agent(model("qwen2.5-vl", provider=PROVIDER), output_type=Count, retries=0)
    assert agent.run_sync([DESCRIBE, PICTURE]).output == Count(count=3)


def test_the_prefix_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", BASE_URL)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    agent = Agent("openai:qwen2.5-vl", output_type=Count, retries=0)
    assert agent.run_sync([DESCRIBE, PICTURE]).output == Count(count=3)
    assert Agent("openai:smolvlm").run_sync([HOW_MANY, PICTURE]).output == "3"


async def stream_text() -> str:
    agent = Agent(OpenAIChatModel("smolvlm", provider=PROVIDER))
    async with agent.run_stream(["Describe this image.", PICTURE]) as run:
        return [text async for text in run.stream_text(delta=False, debounce_by=None)][-1]


def test_a_stream() -> None:
    import asyncio

    assert asyncio.run(stream_text()).startswith("a red circle at ")
