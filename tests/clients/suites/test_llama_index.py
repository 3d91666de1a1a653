from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.program import FunctionCallingProgram
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from scene import BASE_URL, DESCRIBE, FILE, HOW_MANY, WHAT_COLOR


class Count(BaseModel):
    """What the picture shows."""

    count: int


def model(name: str) -> OpenAILike:
    return OpenAILike(
        model=name,
        api_base=BASE_URL,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )


def about_the_picture(text: str) -> ChatMessage:
    return ChatMessage(role="user", blocks=[TextBlock(text=text), ImageBlock(path=FILE)])


def test_a_chat_of_two_turns() -> None:
    history = [about_the_picture(HOW_MANY)]
    first = model("smolvlm").chat(history)
    assert first.message.content == "3"
    history += [first.message, ChatMessage(role="user", content=WHAT_COLOR)]
    assert model("smolvlm").chat(history).message.content == "blue"
    *_, last = model("smolvlm").stream_chat(history)
    assert last.message.content == "blue"


def test_structured_output_by_a_function() -> None:
    structured = model("qwen2.5-vl").as_structured_llm(Count)
    assert structured.chat([about_the_picture(DESCRIBE)]).raw == Count(count=3)


def test_structured_prediction_of_text() -> None:
    program = FunctionCallingProgram.from_defaults(
        output_cls=Count, prompt_template_str="{text}", llm=model("qwen2.5-vl")
    )
    assert isinstance(program(text="Count to three.").count, int)
