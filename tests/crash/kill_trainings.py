"""Kill a small training (SIGKILL) at random moments and in the middle of writing files, run the same command again,
and compare weights, optimiser, tables and curves with the undisturbed run, bit for bit.

python -m tests.crash.kill_trainings --kills 25      from the repository's root, in the activated environment
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from vnet.commands.main import CommandParser, run_and_exit
from vnet.core.config import ARMS

TRAIN = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="kill_trainings", description=__doc__, epilog="Exit code 3 where a bit differs.")
    parser.add_argument("--kills", type=int, default=25, help="how many (25: about 8 minutes on 2 cores)")
    parser.add_argument("--arm", choices=[*ARMS], default="pointrend_s2", help="of the training (pointrend_s2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of the training (0: every core)")
    parser.add_argument("--steps", type=int, default=24, help="of the training (24)")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="new folder that keeps the runs (default: none)")
    chosen = parser.parse_args(argv)
    if chosen.kills < 1 or chosen.steps < 1 or chosen.seed < 0:
        parser.error(f"--kills and --steps must be 1 or more and --seed 0 or more, got {list(argv)}")
    from tests.crash.trial import run_trials
    from vnet.core.errors import InputError, RunFault

    if chosen.output and chosen.output.exists():
        raise InputError(f"--output {chosen.output}: is there already; name a new folder")
    with nullcontext(chosen.output) if chosen.output else TemporaryDirectory(prefix="kill_trainings_") as folder:
        faults = run_trials(
            chosen.kills,
            Path(folder),
            TRAIN,
            arm=chosen.arm,
            seed=chosen.seed,
            threads=chosen.threads,
            steps=chosen.steps,
        )
    if faults:
        raise RunFault(faults)
    print(f"{chosen.kills} of {chosen.kills} resumed to identical bits")
    return 0


if __name__ == "__main__":
    run_and_exit(main, sys.argv[1:])
