"""All arms x folds x seeds of a study, then the comparison; what is done is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vnet.commands.cli import finish
from vnet.core.config import load_config


def main(argv: Sequence[str]) -> int:
    load_config(argv, prog="experiment.py", description=__doc__)  # --help and every fault of the config, first
    from vnet.training.study import run_study

    config = run_study(argv, Path(__file__).with_name("train.py"))
    from vnet.report.terminal import print_comparison

    print_comparison(config)
    print(f"curves and pictures: tensorboard --logdir {Path(config.run_root, config.name)}  (or: make tensorboard)")
    return 0


if __name__ == "__main__":
    finish(main)
