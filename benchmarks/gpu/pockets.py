"""Load the pocket checkpoints, and others of their size, from their folders.

Model families load their image processors through ``AutoImageProcessor``, which before transformers
5.20 requires torchvision for every backend. Here the processor classes are named, and a machine
with an older transformers needs no torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from benchmarks.engine.checkpoint import TRANSFORMERS_CLASSES
from models.options import LoadOptions
from models.qwen2_5_vl.model import Qwen2_5_VL
from models.registry import pocket_folder
from models.smolvlm.model import SmolVLM
from raylens.core.families import family_named, load_attribute
from raylens.engine.model import Model

_CHAT_FAMILIES: dict[str, tuple[Any, Any]] = {
    "smolvlm": (SmolVLM, SmolVLMImageProcessorPil),
    "qwen2_5_vl": (Qwen2_5_VL, Qwen2VLImageProcessorPil),
}
"""Model class and image processor class, by family. Other families load as the registry says."""


def load_pocket(family: str, **options: Any) -> Model:
    """Load the family's bundled checkpoint.

    ``options`` are fields of :class:`models.options.LoadOptions`.
    """
    return load_checkpoint(family, pocket_folder(family), LoadOptions(**options))


def load_checkpoint(family: str, folder: Path, options: LoadOptions) -> Model:
    if family not in _CHAT_FAMILIES:
        load: Callable[[str, LoadOptions], Model] = load_attribute(family_named(family).load)
        return load(str(folder), options)
    model_class, processor_class = _CHAT_FAMILIES[family]
    weights = TRANSFORMERS_CLASSES[family].from_pretrained(folder, dtype=options.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = processor_class.from_pretrained(folder)
    model: Model = model_class(weights, tokenizer, processor, options)
    return model
