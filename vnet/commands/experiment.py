"""Train all arms, folds and seeds of a study, then compare; finished runs are skipped.

--list prints the command of each run instead. --only K/N trains the K-th of N shares of the runs and does not compare:
for the jobs of an array on a cluster.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from vnet.commands.main import CommandParser
from vnet.core.config import load_config
from vnet.core.errors import InputError


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="vnet experiment", add_help=False)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", metavar="K/N")
    chosen, words = parser.parse_with_overrides(argv)
    load_config(words, prog="vnet experiment", description=__doc__)  # --help and every fault of the config, first
    share = parse_share(chosen.only) if chosen.only else (1, 1)
    from vnet.training.study import run_study, share_of, study_configs

    if chosen.list:
        for _, run in share_of(list(study_configs(words)), *share):
            print(shlex.join(["vnet", "train", *run]))
        return 0
    configs = run_study(words, share)
    if chosen.only:
        print(
            f"share {chosen.only} is done ({len(configs)} runs); after the others: vnet experiment {shlex.join(words)}"
        )
        return 0
    from vnet.report.output import print_comparison
    from vnet.report.run_summary import installed_program

    print_comparison(configs)
    runs = Path(configs[0].run_root, configs[0].name)
    print(f"curves, pictures: {installed_program('vnet', 'vnet')} tensorboard {shlex.quote(str(runs))}")
    return 0


def parse_share(text: str) -> tuple[int, int]:
    """(K, N) of "K/N".

    Raises:
        InputError: it is no share, K from 1 to N.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--only must be K/N, the K-th of N shares, K from 1 to N; got {text}")
    return int(found[1]), int(found[2])
