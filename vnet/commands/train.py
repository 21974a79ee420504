"""Train one run, or continue it: vnet train --config quickstart --arm pointrend_s2"""

from __future__ import annotations

from collections.abc import Sequence

from vnet.core.config import load_config
from vnet.core.errors import Preempted, stopping_at_once


def main(argv: Sequence[str]) -> int:
    config = load_config(argv, prog="vnet train", description=__doc__)
    try:
        with stopping_at_once():
            from vnet.core.distributed import is_rank_zero
            from vnet.core.environment import portable_command
            from vnet.core.progress import announce_compiling
            from vnet.core.runs import RunKey
            from vnet.report.output import print_run_summary
            from vnet.training.run import train_run

            announce_compiling()
            run = train_run(config, command=portable_command(["train", *argv]))
    except Preempted as stop:
        print(f"stopped; the same command continues where it stopped: {config.run_folder}", flush=True)
        return stop.exit_code
    if is_rank_zero():
        print_run_summary(run.folder, RunKey.of(config))
    return 0
