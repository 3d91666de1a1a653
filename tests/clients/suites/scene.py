"""The picture that the clients ask about, and the server."""

import base64
import os
from pathlib import Path

SERVER = os.environ["RAYLENS_URL"]
BASE_URL = f"{SERVER}/v1"
FILE = Path(os.environ["RAYLENS_SCENE"])
DATA_URL = f"data:image/png;base64,{base64.b64encode(FILE.read_bytes()).decode()}"
CAPTION = "a red circle, a blue square and a yellow triangle"
HOW_MANY = "How many shapes are there?"
WHAT_COLOR = "What color is the square?"
DESCRIBE = "Describe the picture as JSON."
"""A request for the values of a schema or of a tool."""


def ask(text: str) -> list[dict[str, object]]:
    """Return the messages of a question about the picture."""
    picture = {"type": "image_url", "image_url": {"url": DATA_URL}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]
