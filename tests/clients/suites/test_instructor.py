import instructor
import openai
import pytest
from pydantic import BaseModel, Field
from scene import BASE_URL, DESCRIBE, ask


class Shape(BaseModel):
    shape: str
    color: str
    position: str


class Picture(BaseModel):
    """What the picture shows."""

    shapes: list[Shape] = Field(description="All shapes in reading order")


def test_the_default_mode_returns_an_object() -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key="none"))
    picture = client.chat.completions.create(
        model="qwen2.5-vl", messages=ask(DESCRIBE), response_model=Picture, max_retries=0
    )
    found = [(shape.color, shape.shape) for shape in picture.shapes]
    assert found == [("red", "circle"), ("blue", "square"), ("yellow", "triangle")]


def test_partial_objects_arrive_while_the_answer_is_written() -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key="none"))

    class Count(BaseModel):
        count: int

    partial = client.chat.completions.create_partial(
        model="qwen2.5-vl", messages=ask(DESCRIBE), response_model=Count, max_retries=0
    )
    *_, last = partial
    assert isinstance(last.count, int | None)


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS_STRICT"])
def test_other_modes(mode: str) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=BASE_URL, api_key="none"), mode=instructor.Mode[mode]
    )

    class Count(BaseModel):
        count: int

    reply = client.chat.completions.create(
        model="qwen2.5-vl", messages=ask(DESCRIBE), response_model=Count, max_retries=0
    )
    assert reply.count == 3
