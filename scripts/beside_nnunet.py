"""nnU-Net on one fold of a study: the same cases to train on, one of its own short trainers, its labels as an arm.

    python scripts/beside_nnunet.py --config study_converged --data.root DATA/Task04_Hippocampus --data.fold 1 \\
        --trainer nnUNetTrainer_5epochs --work nnunet_work --output nnunet_fold1
    python scripts/compare.py results/study_steps --data DATA/Task04_Hippocampus --predictions nnunet nnunet_fold1

Writes nnU-Net's raw data set and splits_final.json, then runs nnUNetv2_plan_and_preprocess and nnUNetv2_train
(3d_fullres, on the CPU). What is done is not done again; a training that was stopped continues from its last
checkpoint. The output folder gets CASE.nii.gz of the fold's validation cases and a run.json with the seconds.
Needs the extras nnunet and detection.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the packages of this checkout

from vnet.commands.main import CommandParser, run_and_exit  # noqa: E402
from vnet.core.errors import InputError  # noqa: E402
from vnet.core.files import write_text  # noqa: E402

if TYPE_CHECKING:
    from vnet.data.dataset import Dataset
    from vnet.data.folds import Fold

NUMBER = 1  # of the data set, for nnU-Net
PLAN = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as run"
TRAIN = "from nnunetv2.run.run_training import run_training_entry as run"
STEPS_AN_EPOCH = 250  # of nnU-Net's own trainers
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?):\s*(.*)$")


class Log(NamedTuple):
    """What a training's log tells.

    Attributes:
        epochs: of training with nnU-Net's own validation on patches.
        seconds: of these epochs.
        prediction_seconds: from the first validation case to the last line of the log, after export and scoring.
    """

    epochs: int
    seconds: float
    prediction_seconds: float


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="beside_nnunet.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainer", default="nnUNetTrainer_5epochs", help="(nnUNetTrainer_5epochs)")
    parser.add_argument("--work", metavar="FOLDER", type=Path, required=True, help="of nnU-Net's data and results")
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="of the label files")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    chosen, rest = parser.parse_with_overrides(argv)
    from vnet.core.config import load_config
    from vnet.data.folds import all_folds
    from vnet.data.prepared import prepare_data

    config = load_config(rest)
    prepared = prepare_data(config)
    if not isinstance(config.data.fold, int):
        raise InputError("data.fold: must be the number of one fold here, as --data.fold 1")
    data = chosen.work / "raw" / f"Dataset{NUMBER:03d}_{prepared.dataset.name}"
    write_raw_data(prepared.dataset, data)
    run = Commands(chosen.work, chosen.threads)
    preprocessed = chosen.work / "preprocessed" / data.name
    if not (preprocessed / "done").exists():
        run(PLAN, "-d", str(NUMBER), "-c", "3d_fullres", "-np", str(chosen.threads), "-npfp", str(chosen.threads))
        (preprocessed / "done").touch()
    write_splits(all_folds(prepared.dataset, prepared.groups), preprocessed / "splits_final.json")
    folder = chosen.work / "results" / data.name / f"{chosen.trainer}__nnUNetPlans__3d_fullres"
    folder /= f"fold_{config.data.fold}"
    if not (folder / "validation" / "summary.json").exists():
        begun = ["--c"] if any(folder.glob("checkpoint_*.pth")) else []
        words = [str(NUMBER), "3d_fullres", str(config.data.fold), "-tr", chosen.trainer, "-device", "cpu", *begun]
        run(TRAIN, *words)
    collect(folder, prepared.fold, chosen.output)
    print(f"{chosen.output}: labels of the fold's validation cases, {len(prepared.fold.val)} files", flush=True)
    return 0


class Commands:
    """nnU-Net's commands with its folders below `work`."""

    def __init__(self, work: Path, threads: int) -> None:
        folders = {f"nnUNet_{name}": str(work.resolve() / name) for name in ("raw", "preprocessed", "results")}
        # one process to augment: it shares the cores with the training; compiling is for the GPU
        own = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
        # glibc keeps freed memory, as our own training has it: a step of the hippocampus takes 7.1 s in place of 9.8 s
        kept = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
        self.environment = os.environ | folders | own | kept | {"OMP_NUM_THREADS": str(threads)}

    def __call__(self, program: str, *words: str) -> None:
        command = [sys.executable, "-W", "ignore", "-c", f"{program}; run()", *words]
        if code := subprocess.run(command, env=self.environment, check=False).returncode:
            raise InputError(f"nnU-Net ended with {code}: {' '.join(words)}; its last lines say why")


def write_raw_data(dataset: Dataset, folder: Path) -> None:
    """The labelled cases in nnU-Net's layout, as links to the files of `dataset`."""
    if others := [path for case in dataset.labelled for path in case.files if not path.name.endswith(".nii.gz")]:
        raise InputError(f"{others[0]}: nnU-Net wants one ending for all files, .nii.gz; compress it")
    for case in dataset.labelled:
        assert case.label is not None  # what labelled means
        names = {f"imagesTr/{case.name}_{k:04d}.nii.gz": image for k, image in enumerate(case.images)}
        for name, source in (names | {f"labelsTr/{case.name}.nii.gz": case.label}).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to(source.resolve())
    text = {
        "channel_names": {str(k): name for k, name in enumerate(dataset.modalities)},
        "labels": {name: label for label, name in enumerate(dataset.structures)},
        "numTraining": len(dataset.labelled),
        "file_ending": ".nii.gz",
    }
    write_text(folder / "dataset.json", json.dumps(text, indent=1) + "\n")


def write_splits(folds: Sequence[Fold], path: Path) -> None:
    """The folds where nnU-Net looks for them, under the same numbers."""
    write_text(path, json.dumps([{"train": fold.train, "val": fold.val} for fold in folds], indent=1) + "\n")


def collect(folder: Path, fold: Fold, output: Path) -> None:
    """Copy the labels of the validation cases, and write run.json."""
    output.mkdir(parents=True, exist_ok=True)
    for name in fold.val:
        shutil.copyfile(folder / "validation" / f"{name}.nii.gz", output / f"{name}.nii.gz")
    log = read_log("\n".join(path.read_text() for path in sorted(folder.glob("training_log_*.txt"))))
    steps = log.epochs * STEPS_AN_EPOCH
    facts = {
        "steps": steps,
        "seconds": round(log.seconds, 1),
        "seconds_per_step": round(log.seconds / steps, 4),
        "seconds_per_case": round(log.prediction_seconds / len(fold.val), 2),
    }
    write_text(output / "run.json", json.dumps(facts, indent=1) + "\n")


def read_log(text: str) -> Log:
    """Epochs and seconds of the text of a training's logs, in order; an epoch that was made twice counts once."""
    seconds: dict[str, float] = {}
    epoch, predicting, last = "", None, None
    for line in text.splitlines():
        if not (found := STAMP.match(line)):
            continue
        last, said = datetime.fromisoformat(found[1]), found[2].strip()
        if said.startswith("Epoch time:"):
            seconds[epoch] = float(said.split()[2])
        elif re.fullmatch(r"Epoch \d+", said):
            epoch = said
        elif said.startswith("predicting ") and predicting is None:
            predicting = last
    if predicting is None or last is None or not seconds:
        raise InputError("nnU-Net's log tells no epoch and no prediction; start again with another --work folder")
    return Log(len(seconds), sum(seconds.values()), (last - predicting).total_seconds())


if __name__ == "__main__":
    run_and_exit(main, sys.argv[1:])
