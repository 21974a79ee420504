"""Kill a small training (SIGKILL) at random moments and in the middle of writing files, run the same command again,
and compare weights, optimiser, tables and curves with the undisturbed run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from vnet.commands.cli import Options, finish
from vnet.core.config import ARMS


def main(argv: Sequence[str]) -> int:
    options = Options(prog="faults.py", description=__doc__, epilog="Exit code 3 where a bit differs.")
    options.add_argument("--kills", type=int, default=25, help="how many (25: about 8 minutes on 2 cores)")
    options.add_argument("--arm", choices=[*ARMS], default="pointrend_s2", help="of the training (pointrend_s2)")
    options.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options.add_argument("--threads", type=int, default=0, help="CPU threads of the training (0: every core)")
    options.add_argument("--steps", type=int, default=24, help="of the training (24)")
    options.add_argument("--output", metavar="FOLDER", type=Path, help="new folder that keeps the runs (default: none)")
    chosen = options.parse_args(argv)
    if chosen.kills < 1 or chosen.steps < 1 or chosen.seed < 0:
        options.error(f"--kills and --steps must be 1 or more and --seed 0 or more, got {list(argv)}")
    from tests.crash.trial import run_trials
    from vnet.core.errors import InputError, RunFault

    if chosen.output and chosen.output.exists():
        raise InputError(f"--output {chosen.output}: is there already; name a new folder")
    script = Path(__file__).resolve().with_name("train.py")
    with nullcontext(chosen.output) if chosen.output else TemporaryDirectory(prefix="faults_") as folder:
        faults = run_trials(
            chosen.kills,
            Path(folder),
            script,
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
    finish(main)
