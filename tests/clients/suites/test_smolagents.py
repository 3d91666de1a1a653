from PIL import Image
from scene import BASE_URL, DATA_URL, FILE, HOW_MANY, WHAT_COLOR
from smolagents import OpenAIModel, ToolCallingAgent
from smolagents.models import ChatMessage, MessageRole


def model(name: str, **options: object) -> OpenAIModel:
    return OpenAIModel(model_id=name, api_base=BASE_URL, api_key="none", **options)


def test_two_turns() -> None:
    picture = {"type": "image", "image": Image.open(FILE)}
    question = ChatMessage(
        role=MessageRole.USER, content=[picture, {"type": "text", "text": HOW_MANY}]
    )
    first = model("smolvlm").generate([question])
    assert first.content == "3"
    second = ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": WHAT_COLOR}])
    assert model("smolvlm").generate([question, first, second]).content == "blue"
    pieces = model("smolvlm").generate_stream([question])
    assert "".join(piece.content or "" for piece in pieces) == "3"
    assert DATA_URL.startswith("data:image/png")


def test_an_agent_calls_its_final_answer() -> None:
    agent = ToolCallingAgent(
        tools=[], model=model("qwen2.5-vl", tool_choice="required"), max_steps=2
    )
    agent.run(HOW_MANY, images=[Image.open(FILE)])
    steps = [step for step in agent.memory.steps if getattr(step, "tool_calls", None)]
    assert steps
    assert steps[0].tool_calls[0].name == "final_answer"
