"""Measure speed and memory on this machine.

It prints a table and, without --quick, writes it to results/benchmarks (a CSV for each module of scripts/benchmarks)
and draws NAME.png. Nothing else should run meanwhile. With --case, the table's other rows stay as they are.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the packages of this checkout, and scripts/

from vnet.commands.main import CommandParser, run_and_exit  # noqa: E402

BENCHMARKS = {
    "getpoint": "boundary points of a mask against the algorithms of 2020",
    "render": "labels at a finer resolution against dense interpolation",
    "subdivision": "refinement against loops over the dense fine grid",
    "refinement": "what makes the head cheap on a trained run: Dice by voxels asked about, precision, batches",
    "start": "importing the library and the first call of its compiled functions",
    "step": "a training step of every arm",
    "step_bodies": "a training step of every body of configs/lean_bodies.yaml",
    "tensorboard": "a training with and without logging, and TensorBoard's first page",
    "arithmetic": "a step and a forward pass in bfloat16, channels last, compiled, against float32",
    "train_monai": "a training step of MONAI's V-Net and of ours with the same stages",
    "train_job": "a whole training: seconds to the first step, share of waiting for data",
    "train_growth": "a training step by size of the volume and number of classes",
    "train_roofline": "multiply-adds and bytes of a step's operations against the machine's ceilings",
    "predict": "prediction of one volume by each arm, against `dense` and MONAI's sliding window",
    "nnunet_export": "labels of an nnU-Net model: nnU-Net's own export against ours",
    "processes": "two processes of one thread against one of two threads",
    "volume": "prediction of one large volume: seconds and peak memory",
    "kinds": "prediction of volumes of odd kinds: seconds, peak memory, Dice",
    "determinism": "training steps with deterministic algorithms and without; which bits agree",
}
# the functions below scripts/benchmarks; the others are NAME.run
FUNCTIONS = {
    "subdivision": "refinement.run_subdivision",
    "tensorboard": "training.run_tensorboard",
    "step_bodies": "step.run_step_bodies",
    "arithmetic": "step.run_arithmetic",
    "train_job": "start.run_train_job",
    "train_growth": "step.run_train_growth",
    "train_roofline": "step.run_train_roofline",
    "processes": "training.run_processes",
    "kinds": "volume.run_kinds",
    "determinism": "training.run_determinism",
}
BY_CASE = ("render", "subdivision", "nnunet_export")  # those whose rows can be measured one at a time
WITH_RUN = ("render", "refinement")


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="benchmark.py", description=__doc__)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
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
        if name in BY_CASE:
            one.add_argument("--case", metavar="NAME", action="append", default=[], help="only this row (repeatable)")
        if name in WITH_RUN:
            one.add_argument("--run", metavar="RUN", type=Path, help="a trained run to measure on")
    chosen = parser.parse_args(argv)
    choice: dict[str, Any] = {"cases": chosen.case} if chosen.name in BY_CASE else {}
    if chosen.name in WITH_RUN:
        choice["trained"] = chosen.run
    module, function = FUNCTIONS.get(chosen.name, f"{chosen.name}.run").split(".")
    run = getattr(import_module(f"scripts.benchmarks.{module}"), function)
    show(run(quick=chosen.quick, **choice), module, chosen)
    return 0


def show(rows: list[dict[str, Any]], module: str, chosen: Namespace) -> None:
    """Print the rows; unless the run was quick, keep them in MODULE.csv, and draw them as NAME.png."""
    name = chosen.name
    print_rows(rows, name)
    if not chosen.quick:
        from scripts.benchmarks.harness import draw_seconds, keep_rows

        chosen.output.mkdir(parents=True, exist_ok=True)
        table = chosen.output / f"{module}.csv"
        part = bool(getattr(chosen, "case", None) or getattr(chosen, "run", None))
        draw_seconds(keep_rows(rows, table, name, part=part), chosen.output / f"{name}.png", name.replace("_", ": "))
        print(f"written: {table}, {name}.png")


def print_rows(rows: list[dict[str, object]], title: str) -> None:
    """One block a row: benchmarks have more columns than a terminal."""
    print(title)
    for row in rows:
        print()
        for key, value in row.items():
            print(f"  {key:<24} {value:.4g}" if isinstance(value, float) else f"  {key:<24} {value}")
    sys.stdout.flush()


if __name__ == "__main__":
    run_and_exit(main, sys.argv[1:])
