"""The pocket checkpoints, and others of their size, from their folders.

Families load their image processors by ``AutoImageProcessor``, which before transformers 5.20 asks
for torchvision whatever the backend; here the classes are named, so that a machine with an older
one will do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.engine.checkpoint import REFERENCES
from models.moondream import model as moondream
from models.options import LoadOptions
from models.qwen2_5_vl.model import Qwen2_5_VL
from models.registry import POCKET
from models.smolvlm.model import SmolVLM
from raylens.engine.model import Model

_CHATS: dict[str, tuple[Any, Any]] = {
    "smolvlm": (SmolVLM, SmolVLMImageProcessorPil),
    "qwen2_5_vl": (Qwen2_5_VL, Qwen2VLImageProcessorPil),
}


def pocket(family: str, **options: Any) -> Model:
    """The family's bundled checkpoint; ``options`` are those of
    :class:`models.options.LoadOptions`."""
    return load(family, POCKET / family, LoadOptions(**options))


def load(family: str, folder: Path, options: LoadOptions) -> Model:
    if family == "moondream":
        return moondream.load(str(folder), options)
    kind, processor = _CHATS[family]
    model = REFERENCES[family].from_pretrained(folder, dtype=options.dtype).eval()
    loaded: Model = kind(
        model, AutoTokenizer.from_pretrained(folder), processor.from_pretrained(folder), options
    )
    return loaded
