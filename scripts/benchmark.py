"""Measure speed and memory on this machine.

Prints a table; without --quick it also writes results/benchmarks/NAME.csv and NAME.png. Nothing else should run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from vnet.cli import Options, finish

REPOSITORY = Path(__file__).resolve().parents[1]
BENCHMARKS = {
    "getpoint": "boundary points of a mask against the algorithms of 2020",
    "render": "labels at a finer resolution against dense interpolation",
    "subdivision": "refinement against loops over the dense fine grid",
    "step": "a training step of every arm",
    "share": "share of voxels refined at prediction: Dice and seconds of a trained run",
    "board": "a training with and without logging, and TensorBoard's first page",
    "volume": "prediction of one large volume: seconds and peak memory",
}


def main(argv: Sequence[str]) -> int:
    options = Options(prog="benchmark.py", description=__doc__)
    names = options.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, purpose in BENCHMARKS.items():
        one = names.add_parser(name, help=purpose, description=purpose)
        one.add_argument("--quick", action="store_true", help="small sizes, under five minutes; nothing is written")
        one.add_argument(
            "--output",
            metavar="FOLDER",
            type=Path,
            default=REPOSITORY / "results" / "benchmarks",
            help="of the CSV and the chart (default: results/benchmarks)",
        )
    chosen = options.parse_args(argv)
    sys.path.insert(0, str(REPOSITORY))  # benchmarks/ belongs to the repository, not to the installed packages
    rows = import_module(f"benchmarks.{chosen.name}").run(quick=chosen.quick)
    print_rows(rows, chosen.name)
    if not chosen.quick:
        from benchmarks.charts import draw_seconds, write_csv

        chosen.output.mkdir(parents=True, exist_ok=True)
        write_csv(rows, chosen.output / f"{chosen.name}.csv")
        draw_seconds(rows, chosen.output / f"{chosen.name}.png", BENCHMARKS[chosen.name])
        print(f"written: {chosen.output / chosen.name}.csv, .png")
    return 0


def print_rows(rows: list[dict[str, object]], title: str) -> None:
    """One block a row: benchmarks have more columns than a terminal."""
    print(title)
    for row in rows:
        print()
        for key, value in row.items():
            print(f"  {key:<24} {value:.4g}" if isinstance(value, float) else f"  {key:<24} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    finish(main)
