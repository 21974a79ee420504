"""Make, fetch or check a data set.

vnet data phantoms OUTPUT        synthetic volumes with labels, as a Decathlon folder
vnet data download TASK OUTPUT   a task of the Medical Segmentation Decathlon
vnet data check DATASET          read every file once; report faults and oddities
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vnet.commands.parser import CommandParser


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="vnet data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="phantoms|download|check")
    add_phantoms(commands)
    add_download(commands)
    add_check(commands)
    chosen = parser.parse_args(argv)
    run = {"phantoms": make_phantoms, "download": download, "check": check}[chosen.command]
    return run(chosen)


Commands = argparse._SubParsersAction  # what add_subparsers gives; argparse has no public name for it


def add_phantoms(commands: Commands) -> None:
    about = "Write labelled phantoms: organs that touch, a cleft, thin vessels; the same seed gives the same volumes."
    made = commands.add_parser("phantoms", help=about, description=about)
    made.add_argument("output", metavar="OUTPUT", type=Path, help="folder to make")
    made.add_argument("--count", type=int, default=24, help="volumes (24)")
    made.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    axes = ("Z", "Y", "X")
    made.add_argument("--size", type=int, nargs=3, metavar=axes, help="voxels, about (40 42 40)")
    made.add_argument("--spacing_mm", type=float, nargs=3, metavar=axes, help="about (1.25 1 1)")
    made.add_argument("--organs", type=int, help="organs that touch (2)")
    made.add_argument("--no_vessels", dest="vessels", action="store_false", default=None, help="organs only")
    made.add_argument("--modality", choices=("MRI", "CT"), help="MRI: bias field, any scale; CT: Hounsfield units")
    made.add_argument("--channels", type=int, help="images per case (1)")
    made.add_argument(
        "--orientations", nargs="+", metavar="RAS", help="of the files, in turn (RAS LPS RAS SRA LAS PIR)"
    )
    made.add_argument("--noise", type=float, help="in units of the contrast (0.22)")
    made.add_argument("--fineness", type=int, help="finer voxels per axis in rendering (2); 1 for very large volumes")
    made.add_argument(
        "--exact", dest="vary", action="store_false", default=None, help="all of the same size and spacing"
    )
    made.add_argument("--ignore", type=float, help="share of unsure voxels marked with an ignore label (0)")


def add_download(commands: Commands) -> None:
    about = "Fetch a Decathlon task by its name (Task04_Hippocampus, Hippocampus or 4)."
    fetched = commands.add_parser("download", help=about, description=about)
    fetched.add_argument("task", metavar="TASK")
    fetched.add_argument("output", metavar="OUTPUT", type=Path, help="folder in which the task's folder is made")


def add_check(commands: Commands) -> None:
    about = (
        "Read every voxel of a data set; a table of what is wrong and what is unusual. Exit 2 if training would fail."
    )
    checked = commands.add_parser("check", help=about, description=about)
    checked.add_argument("dataset", metavar="DATASET", type=Path, help="folder that holds dataset.json")


def make_phantoms(chosen: argparse.Namespace) -> int:
    from vnet.data.phantoms import PhantomKind, write_phantoms

    given = {name: value for name, value in vars(chosen).items() if value is not None}
    kept = {name: value for name, value in given.items() if name not in ("command", "output", "count", "seed")}
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    kind = PhantomKind(**plain)
    write_phantoms(chosen.output, chosen.count, chosen.seed, kind=kind)
    print(f"{chosen.count} phantoms in {chosen.output}: {', '.join(kind.structures[1:])}")
    return 0


def download(chosen: argparse.Namespace) -> int:
    from vnet.data.download import download_task

    print(f"task in {download_task(chosen.task, chosen.output)}")
    return 0


def check(chosen: argparse.Namespace) -> int:
    from vnet.core.errors import InputError
    from vnet.data.dataset_report import report_dataset

    report = report_dataset(chosen.dataset)
    report.print()
    if report.faults:
        raise InputError(report.faults)
    return 0
