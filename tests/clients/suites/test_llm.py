import json
import os
import subprocess
from pathlib import Path

import pytest
from scene import BASE_URL, DESCRIBE, FILE, HOW_MANY, WHAT_COLOR


@pytest.fixture
def llm(tmp_path: Path):
    """Return a function that runs the command ``llm`` with the server's models."""
    models = "".join(
        f"- model_id: {name}\n  model_name: {name}\n  api_base: {BASE_URL}\n"
        f"  vision: true\n  supports_schema: true\n  supports_tools: true\n"
        for name in ("smolvlm", "qwen2.5-vl")
    )
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(*arguments: str) -> str:
        command = [str(Path(os.sys.executable).with_name("llm")), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_a_question_and_a_second_one(llm) -> None:
    assert llm("-m", "smolvlm", HOW_MANY, "-a", str(FILE)) == "3"
    assert llm("-c", WHAT_COLOR) == "blue"


def test_without_a_stream(llm) -> None:
    assert llm("-m", "smolvlm", HOW_MANY, "-a", str(FILE), "--no-stream") == "3"


def test_a_schema(llm) -> None:
    answer = llm("-m", "qwen2.5-vl", DESCRIBE, "-a", str(FILE), "--schema", "count int")
    assert json.loads(answer) == {"count": 3}


def test_a_function(llm) -> None:
    code = "def version() -> str:\n    'The version'\n    return '1'\n"
    assert llm("-m", "qwen2.5-vl", HOW_MANY, "-a", str(FILE), "--functions", code)
