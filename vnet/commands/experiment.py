"""Train all arms, folds and seeds of a study, then compare; finished runs are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vnet.core.config import load_config


def main(argv: Sequence[str]) -> int:
    load_config(argv, prog="vnet experiment", description=__doc__)  # --help and every fault of the config, first
    from vnet.training.study import run_study

    configs = run_study(argv)
    from vnet.report.terminal import print_comparison

    print_comparison(configs)
    runs = Path(configs[0].run_root, configs[0].name)
    print(f"curves and pictures: tensorboard --logdir {runs}  (or: make tensorboard)")
    return 0
