"""Third-party clients against the shipped configuration: ``make test-clients``.

Each client has an environment of its own, since some exclude each other. The examples of
docs/clients.md run in the same environments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.documents import Example, read_examples
from tests.clients.environments import (
    ROOT,
    SUITES,
    node_folder,
    python_of,
    suite_names,
)
from tests.clients.pictures import write_pictures

pytestmark = pytest.mark.clients

TIMEOUT_S = 300
PICTURES = 24
DOCUMENTED_SERVER = "http://127.0.0.1:8000"
SUITES_OF_SECTIONS = {
    "OpenAI's Python library": "openai",
    "LangChain": "langchain",
    "Instructor": "instructor",
    "Pydantic AI": "pydantic_ai",
    "LlamaIndex": "llama_index",
    "LiteLLM": "litellm",
    "huggingface_hub": "huggingface_hub",
    "llm": "llm",
    "smolagents": "smolagents",
    "supervision": "supervision",
    "live-vlm-webui": "live_vlm_webui",
    "Ollama's Python library": "ollama",
    "Moondream's Python library": "moondream",
}
"""The suites in Python by the heading of their client's section in docs/clients.md."""
EXAMPLES = read_examples()


@pytest.fixture(scope="module")
def environment(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables that the suites read."""
    pictures = tmp_path_factory.mktemp("pictures")
    write_pictures(pictures, PICTURES)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "OLLAMA_")) and not name.lower().endswith("_proxy")
    }
    return {
        **inherited,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # not from the network
        "PYTHONPATH": str(SUITES),
        "RAYLENS_URL": server,
        "RAYLENS_SCENE": str(ROOT / "docs/scene.png"),
        "RAYLENS_PICTURES": str(pictures),
        "RAYLENS_COMMAND": str(Path(sys.executable).with_name("raylens")),
    }


def run(command: list[object], environment: dict[str, str], folder: Path) -> str:
    """Return what a command prints."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_in_python(name: str, environment: dict[str, str]) -> None:
    options = [
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        SUITES,
    ]
    suite = SUITES / f"test_{name}.py"
    run([python_of(name), "-m", "pytest", *options, suite], environment, SUITES)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
@pytest.mark.parametrize("path", sorted(SUITES.glob("*.test.mjs")), ids=lambda path: path.name)
def test_a_suite_in_node(path: Path, environment: dict[str, str]) -> None:
    run(["node", "--test", path.name], environment, node_folder())


def test_every_client_has_a_section() -> None:
    assert {example.title for example in EXAMPLES} >= set(SUITES_OF_SECTIONS)
    assert set(SUITES_OF_SECTIONS.values()) == set(suite_names())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_a_section_of_the_docs_is_true(
    example: Example, environment: dict[str, str], tmp_path: Path
) -> None:
    code = example.code.replace(DOCUMENTED_SERVER, environment["RAYLENS_URL"])
    if example.language == "js":
        if shutil.which("node") is None:
            pytest.skip("Node.js is not installed")
        folder = node_folder()
        (folder / "docs").unlink(missing_ok=True)
        (folder / "docs").symlink_to(ROOT / "docs")
        script = folder / "example.mjs"
        script.write_text(code)
        output = run(["node", script], environment, folder)
    else:
        python = python_of(SUITES_OF_SECTIONS[example.title])
        variables = {
            **environment,
            "PATH": f"{python.parent}:{environment['PATH']}",
            "LLM_USER_PATH": str(tmp_path),
            "XDG_CONFIG_HOME": str(tmp_path),
        }
        command = ["python", "-c"] if example.language == "python" else ["bash", "-ec"]
        output = run([*command, code], variables, ROOT)
    assert output.strip() == example.output.strip()
