"""The bundled checkpoints: small, loadable by plain transformers, and right about scenes."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from models.pocket.drawing import draw
from models.pocket.scenes import random_scene
from models.registry import load_model, pocket_folder
from raylens.core.config import ModelConfig
from raylens.core.families import families
from raylens.core.types import Caption, VisionRequest
from raylens.engine.engine import Engine
from raylens.engine.limits import EngineLimits
from raylens.engine.sequence import GenerationSequence, make_sequences

SMOLVLM = pocket_folder("smolvlm")


@pytest.mark.parametrize("family", families())
def test_a_pocket_checkpoint_is_at_most_5_mb_and_has_a_model_card(family: str) -> None:
    files = [path for path in pocket_folder(family).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5 * 10**6
    assert (pocket_folder(family) / "README.md").is_file()


def test_plain_transformers_loads_it_and_captions_scenes() -> None:
    """Only the prompt's text and the picture come from this project."""
    model = SmolVLMForConditionalGeneration.from_pretrained(SMOLVLM).eval()
    tokenizer = AutoTokenizer.from_pretrained(SMOLVLM)
    processor = SmolVLMImageProcessorPil.from_pretrained(SMOLVLM)
    content = [{"type": "image"}, {"type": "text", "text": "Describe this image."}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image_tokens = "<image>" * 9
    picture = f"<fake_token_around_image><global-img>{image_tokens}<fake_token_around_image>"
    prompt = text.replace("<image>", picture)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    rng = random.Random(11)
    right = 0
    for _ in range(10):
        scene = random_scene(rng, 400)
        pixels = processor(draw(scene, rng), do_image_splitting=False, return_tensors="pt")
        output = model.generate(
            input_ids=ids,
            pixel_values=pixels["pixel_values"],
            max_new_tokens=60,
            do_sample=False,
        )
        caption = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        right += caption.strip() == scene.caption()
    assert right >= 9


@pytest.mark.parametrize("family", families())
def test_its_logits_are_at_least_as_wide_as_its_vocabulary(family: Any) -> None:
    model = load_model(ModelConfig(name="m", family=family))
    assert model.vocab_size >= model.tokenizer.get_vocab_size()


@pytest.mark.parametrize("family", families())
def test_captions_through_the_engine_are_right(family: Any) -> None:
    model = load_model(ModelConfig(name="m", family=family))
    engine = Engine(model, EngineLimits(max_batch_size=16))
    rng = random.Random(12)
    expected: dict[GenerationSequence, str] = {}
    for _ in range(40):
        scene = random_scene(rng, 400)
        request = VisionRequest("r", "m", Caption(), time.time() + 600)
        prompt = model.prepare(request, [np.ascontiguousarray(draw(scene, rng))])
        (sequence,) = make_sequences(request, prompt, model.tokenizer)
        expected[sequence] = scene.caption()
    engine.scheduler.add(expected)
    captions = dict.fromkeys(expected, "")
    while engine.has_work:
        for output in engine.step():
            assert output.delta is not None
            captions[output.sequence] += output.delta.text
    right = sum(captions[sequence] == caption for sequence, caption in expected.items())
    assert right >= 37, f"{right} of {len(expected)}"
