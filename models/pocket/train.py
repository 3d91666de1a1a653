"""``python -m models.pocket.train smolvlm``: trains a family's pocket checkpoint; resumes where it was stopped."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

import torch

from models.pocket import train_smolvlm

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=["smolvlm"])
    parser.add_argument("--minutes", type=float, default=train_smolvlm.Settings.minutes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(".train"), help="where progress is kept")
    parser.add_argument("--out", type=Path, default=None, help="where the checkpoint goes (default: the bundled one)")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    settings = dataclasses.replace(train_smolvlm.Settings(), minutes=arguments.minutes, seed=arguments.seed)
    train_smolvlm.train(settings, arguments.work / arguments.family, arguments.out or HERE / arguments.family)


if __name__ == "__main__":
    main()
