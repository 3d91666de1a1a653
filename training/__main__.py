"""``python -m training smolvlm``: trains a family's pocket checkpoint; resumes where it was
stopped."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import torch

from models.registry import POCKET
from training import moondream, qwen2_5_vl, smolvlm
from training.trainer import Settings, train

FAMILIES = {"moondream": moondream, "smolvlm": smolvlm, "qwen2_5_vl": qwen2_5_vl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("--minutes", type=float, default=Settings.minutes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".train"), help="where progress is kept")
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="where the checkpoint goes (default: the bundled one)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    family = FAMILIES[arguments.family]
    settings = dataclasses.replace(
        family.Settings(), minutes=arguments.minutes, seed=arguments.seed
    )
    train(
        family.Trainer(settings, arguments.work / arguments.family),
        arguments.out or POCKET / arguments.family,
    )


if __name__ == "__main__":
    main()
