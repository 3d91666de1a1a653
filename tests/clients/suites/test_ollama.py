import ollama
from pydantic import BaseModel
from scene import DESCRIBE, FILE, HOW_MANY, SERVER, WHAT_COLOR

client = ollama.Client(SERVER)


def test_two_turns_and_a_stream() -> None:
    messages = [{"role": "user", "content": HOW_MANY, "images": [str(FILE)]}]
    first = client.chat(model="smolvlm", messages=messages).message
    assert first.content == "3"
    messages += [first, {"role": "user", "content": WHAT_COLOR}]
    assert client.chat(model="smolvlm", messages=messages).message.content == "blue"
    pieces = client.chat(model="smolvlm", messages=messages, stream=True)
    assert "".join(piece.message.content for piece in pieces) == "blue"


def test_a_schema() -> None:
    class Count(BaseModel):
        count: int

    message = {"role": "user", "content": DESCRIBE, "images": [FILE.read_bytes()]}
    reply = client.chat(
        model="qwen2.5-vl", messages=[message], format=Count.model_json_schema()
    ).message.content
    assert Count.model_validate_json(reply) == Count(count=3)


def test_generate_and_the_list_of_models() -> None:
    reply = client.generate(model="smolvlm:latest", prompt=HOW_MANY, images=[FILE.read_bytes()])
    assert reply.response == "3"
    assert {model.model for model in client.list().models} >= {"smolvlm:latest"}
    assert "vision" in client.show("smolvlm").capabilities


def test_a_tool() -> None:
    def report(count: int) -> str:
        """Reports the number of shapes.

        Args:
            count: how many
        """
        return ""

    message = {"role": "user", "content": DESCRIBE, "images": [str(FILE)]}
    reply = client.chat(model="qwen2.5-vl", messages=[message], tools=[report])
    assert reply.done
