"""Train the pocket checkpoint of a family, and resume an interrupted run.

Usage: ``python -m training smolvlm``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import torch

from models.registry import pocket_folder
from training import moondream, qwen2_5_vl, smolvlm
from training.trainer import TrainingSettings, train

RECIPES = {"moondream": moondream, "smolvlm": smolvlm, "qwen2_5_vl": qwen2_5_vl}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train the pocket checkpoint of a family, and resume an interrupted run.",
    )
    parser.add_argument("family", choices=list(RECIPES))
    parser.add_argument(
        "--minutes",
        type=float,
        default=TrainingSettings.minutes,
        help=f"training time (default: {TrainingSettings.minutes:g})",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="folder of a checkpoint whose weights to begin with (default: random ones)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument(
        "--work", type=Path, default=Path(".train"), help="folder for progress (default: .train)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder for the checkpoint (default: the bundled one)",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    recipe = RECIPES[arguments.family]
    settings = dataclasses.replace(
        recipe.TrainingSettings(), minutes=arguments.minutes, seed=arguments.seed
    )
    if arguments.start:
        settings = dataclasses.replace(settings, learning_rate=settings.learning_rate / 2)
    trainer = recipe.Trainer(settings, arguments.work / arguments.family)
    if arguments.start and trainer.steps == 0:
        trainer.start_from(arguments.start)
    train(trainer, arguments.out or pocket_folder(arguments.family))


if __name__ == "__main__":
    main()
