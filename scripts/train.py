"""Train one run, or continue it: python scripts/train.py --config configs/quickstart.yaml --arm pointrend_s2"""

from __future__ import annotations

from collections.abc import Sequence

from vnet.cli import finish
from vnet.config import load_config
from vnet.signals import Preempted, stopping_at_once


def main(argv: Sequence[str]) -> int:
    config = load_config(argv, prog="train.py", description=__doc__)
    try:
        with stopping_at_once():
            from vnet.experiment import train_run
            from vnet.processes import is_first
            from vnet.report import print_run_summary

            run = train_run(config)
    except Preempted as stop:
        print(f"stopped; the same command continues where it stopped: {config.run_folder}", flush=True)
        return stop.exit_code
    if is_first():
        print_run_summary(run.folder)
    return 0


if __name__ == "__main__":
    finish(main)
