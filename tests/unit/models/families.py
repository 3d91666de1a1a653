"""Every family's random checkpoint, and what loads it."""

from __future__ import annotations

import pytest

from models.moondream import model as moondream
from models.qwen2_5_vl import model as qwen2_5_vl
from models.smolvlm import model as smolvlm
from testing.checkpoints import random_moondream, random_qwen2_5_vl, random_smolvlm

every_family = pytest.mark.parametrize(
    ("make", "load"),
    [
        (random_smolvlm, smolvlm.load),
        (random_qwen2_5_vl, qwen2_5_vl.load),
        (random_moondream, moondream.load),
    ],
    ids=["smolvlm", "qwen2_5_vl", "moondream"],
)
