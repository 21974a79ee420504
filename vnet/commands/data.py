"""Make, fetch or check a data set, or plan a config for it.

vnet data phantoms OUTPUT        synthetic volumes with labels, as a Decathlon folder
vnet data synthesize LABELS DATA images drawn from label maps, as a Decathlon folder
vnet data download TASK OUTPUT   a task of the Medical Segmentation Decathlon
vnet data check DATASET          read every file once; report faults and oddities
vnet data plan DATASET > FILE    a config for the data set, with the reason of each choice
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from vnet.commands.main import CommandParser, add_device_option


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="vnet data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="phantoms|synthesize|download|check|plan")
    add_phantoms(commands)
    add_synthesize(commands)
    add_download(commands)
    add_check(commands)
    add_plan(commands)
    chosen = parser.parse_args(argv)
    run = {"phantoms": make_phantoms, "synthesize": synthesize, "download": download, "check": check, "plan": plan}
    return run[chosen.command](chosen)


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


def add_synthesize(commands: Commands) -> None:
    about = (
        "Draw an image for each label map: a Gaussian per tissue, blur, bias field, resolution, noise (the model of "
        "SynthSeg). The same seed gives the same images."
    )
    made = commands.add_parser("synthesize", help=about, description=about)
    made.add_argument("labels", metavar="LABELS", type=Path, help="folder of label maps")
    made.add_argument("output", metavar="DATA", type=Path, help="folder to make")
    made.add_argument("--name", default="Synthetic brains", help="of the data set")
    made.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    made.add_argument(
        "--table",
        metavar="FILE",
        help="JSON of what the values mean, or freesurfer (LABELS/labels.json; freesurfer where there is none)",
    )
    made.add_argument("--contrast", help="t1: intensities about those of a T1-weighted image; random (t1)")
    made.add_argument("--contrast_scale", type=float, help="of the differences between tissues (1)")
    made.add_argument("--bias", type=float, help="strength of the bias field (0.3)")
    made.add_argument("--blur_mm", type=float, help="standard deviation of the blur (0.5)")
    made.add_argument(
        "--resolution_mm", type=float, nargs=3, metavar=("Z", "Y", "X"), help="of the acquisition (1 1 1)"
    )
    made.add_argument("--noise", type=float, help="standard deviation, of intensities of 0 to 255 (3)")


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


def add_plan(commands: Commands) -> None:
    about = (
        "Read every voxel of a data set and write a config for it to stdout: spacing, patch, strides, batch and steps, "
        "each with its reason, and what a training takes. Train with: vnet experiment --config FILE."
    )
    planned = commands.add_parser("plan", help=about, description=about)
    planned.add_argument("dataset", metavar="DATASET", type=Path, help="folder that holds dataset.json")
    planned.add_argument(
        "--memory_mib", type=float, help="that a training may take (4096, or half of the memory where that is less)"
    )
    planned.add_argument("--measure", action="store_true", help="time two steps of the planned network here")
    add_device_option(planned)


def make_phantoms(chosen: argparse.Namespace) -> int:
    from vnet.data.phantoms import PhantomKind, write_phantoms

    given = {name: value for name, value in vars(chosen).items() if value is not None}
    kept = {name: value for name, value in given.items() if name not in ("command", "output", "count", "seed")}
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    kind = PhantomKind(**plain)
    write_phantoms(chosen.output, chosen.count, chosen.seed, kind=kind)
    print(f"{chosen.count} phantoms in {chosen.output}: {', '.join(kind.structures[1:])}")
    return 0


def synthesize(chosen: argparse.Namespace) -> int:
    from vnet.data.synthesis.image_model import ImageModel
    from vnet.data.synthesis.writing import synthesize_dataset

    keys = ("contrast", "contrast_scale", "bias", "blur_mm", "resolution_mm", "noise")
    given = {key: value for key in keys if (value := getattr(chosen, key)) is not None}
    if "resolution_mm" in given:
        given["resolution_mm"] = tuple(given["resolution_mm"])
    model = ImageModel(**given)
    count = synthesize_dataset(
        chosen.labels, chosen.output, model=model, seed=chosen.seed, table=chosen.table, name=chosen.name
    )
    print(f"{count} images in {chosen.output}")
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
    print(f"a config for it: vnet data plan {shlex.quote(str(chosen.dataset))} > my.yaml")
    return 0


PLAN_MIB = 4096.0


def plan(chosen: argparse.Namespace) -> int:
    from vnet.core.distributed import available_cores
    from vnet.core.errors import InputError
    from vnet.core.hardware import memory_limit_bytes
    from vnet.training.plan import make_plan, measure_plan, read_survey

    if chosen.memory_mib is not None and not 0 < chosen.memory_mib < float("inf"):
        raise InputError(f"--memory_mib must be positive, got {chosen.memory_mib}")
    with redirect_stdout(sys.stderr):  # stdout is the config alone
        survey = read_survey(chosen.dataset)
        memory_mib = chosen.memory_mib or min(PLAN_MIB, memory_limit_bytes() / 2**21)
        planned = make_plan(survey, memory_mib=memory_mib, cores=available_cores())
        planned = measure_plan(planned, chosen.device) if chosen.measure else planned
    print(planned.to_yaml(), end="")
    return 0
