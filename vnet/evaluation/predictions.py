"""Label files of another program as an arm of a study: scored by this project's metrics on the study's own cases.

The folder holds CASE.nii.gz or CASE.nii for the cases of one fold or more. A fold of which no case is there is left
out; one of which some are there must be complete, as a mean over the easier half says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vnet.core.errors import InputError
from vnet.core.files import read_json
from vnet.core.progress import ProgressBar
from vnet.data.case_files import list_folder
from vnet.data.dataset import Case, Dataset, open_dataset
from vnet.data.header_affine import name_some
from vnet.data.nifti import stem
from vnet.data.volumes import read_image, read_label
from vnet.evaluation.metrics import Row, case_metrics
from vnet.evaluation.study_tables import RunRecord, Study

SAME_ML = 1e-5  # tables hold six decimals


@dataclass(frozen=True)
class Predictions:
    """A folder of label files, and the name of the arm that they are.

    A `run.json` in the folder may tell costs under the names of a run's: seconds, steps, seconds_per_step,
    seconds_per_case, peak_memory_mib, parameters, multiply_adds.
    """

    name: str
    folder: Path


def add_predictions(study: Study, predictions: Predictions, root: Path | None = None) -> tuple[Study, str]:
    """The study with the arm that the label files are, and a sentence on what was read.

    The arm counts as a training of the study's lowest seed in each fold, so that it is paired with that one.

    Args:
        root: the data set with the true labels; None takes the folder that the runs name.

    Raises:
        InputError: an arm of that name, no such folder, no fold that is complete, a file that cannot be read, lies on
            another grid or holds a label that is no structure; other true labels than those the study scored.
    """
    name, folder = predictions.name, predictions.folder
    if name in study.arms or " - " in name or ":" in name or not name.isprintable() or not name.strip():
        raise InputError(f"--predictions {name}: must be a name that no arm of the study has; choose another")
    if not folder.is_dir():
        raise InputError(f"--predictions {name}: {folder} is no folder; name one that holds CASE.nii.gz")
    dataset = open_dataset(data_root(study, root))
    if list(dataset.structures[1:]) != study.structures:
        raise InputError(
            f"{dataset.root}: has the structures {', '.join(dataset.structures[1:])}, the study "
            f"{', '.join(study.structures)}; name the study's own data set with --data"
        )
    files = label_files(folder)
    folds = complete_folds(study, files, predictions)
    rows = score_folds(study, predictions, dataset, files, folds)
    seeds = {fold: min(run.seed for run in study.runs if run.fold == fold) for fold in folds}
    frame = pd.DataFrame([row | {"arm": name, "seed": seeds[row["fold"]], "refined": False} for row in rows])
    if not study.subjects.empty:
        frame["subject"] = frame["case"].map(study.subjects)
    info = read_json(folder / "run.json") or {}
    records = [RunRecord(folder / "cases.csv", name, fold, seeds[fold], info, {}, foreign=True) for fold in folds]
    unused = sorted(set(files) - {case for cases in folds.values() for case in cases})
    beside = f"; {len(unused)} other files are not used: {name_some(unused)}" if unused else ""
    said = f"{name}: {len({row['case'] for row in rows})} label files of {folder.name}, fold {', '.join(sorted(folds))}"
    joined = pd.concat([study.cases, frame], ignore_index=True)
    return replace(study, cases=joined, runs=(*study.runs, *records)), f"{said}{beside}."


def data_root(study: Study, root: Path | None) -> Path:
    """The folder of the study's data set.

    Raises:
        InputError: none is named and the one that the runs name is not there.
    """
    if root is not None:
        return root
    named = dict.fromkeys(str((run.config.get("data") or {}).get("root") or "") for run in study.runs)
    found = next((Path(text) for text in named if text and Path(text).is_dir()), None)
    if found is None:
        raise InputError("--predictions: the true labels are needed; name the study's data set with --data FOLDER")
    return found


def label_files(folder: Path) -> dict[str, Path]:
    """Case name -> its label file.

    Raises:
        InputError: two files of one case.
    """
    files: dict[str, Path] = {}
    for path in list_folder(folder).volumes:
        if (name := stem(path)) in files:
            raise InputError(f"{folder}: holds {files[name].name} and {path.name} of one case; keep one")
        files[name] = path
    return files


def complete_folds(study: Study, files: Mapping[str, Path], predictions: Predictions) -> dict[str, list[str]]:
    """Fold -> the cases that the study scored in it, of the folds whose files are all there.

    Raises:
        InputError: a fold of which some files are missing, or no fold at all.
    """
    scored = {str(fold): sorted(set(cases)) for fold, cases in study.cases.groupby("fold")["case"]}
    faults, complete = [], {}
    for fold, cases in scored.items():
        missing = [case for case in cases if case not in files]
        if not missing:
            complete[fold] = cases
        elif len(missing) < len(cases):
            faults.append(
                f"{predictions.folder}: lacks {len(missing)} of the {len(cases)} cases of fold {fold}: "
                f"{name_some(missing)}; predict them too, or take the others of that fold out"
            )
    if not complete and not faults:
        example = next(iter(scored.values()))[0]
        held = f"holds {name_some(sorted(files))}" if files else "holds no NIfTI file"
        faults.append(f"{predictions.folder}: {held}, no case of the study; name the files {example}.nii.gz and so on")
    if faults:
        raise InputError(faults)
    return complete


def score_folds(
    study: Study,
    predictions: Predictions,
    dataset: Dataset,
    files: Mapping[str, Path],
    folds: Mapping[str, list[str]],
) -> list[Row]:
    """A row a fold, case and structure, by the metrics of `vnet evaluate`.

    Raises:
        InputError: every fault of a file.
    """
    tolerances = {float((run.config.get("metrics") or {}).get("tolerance_mm", 1.0)) for run in study.runs}
    if len(tolerances) > 1:
        raise InputError(
            f"--predictions {predictions.name}: the runs differ in metrics.tolerance_mm; compare them apart"
        )
    (tolerance_mm,) = tolerances
    cases = {case.name: case for case in dataset.labelled}
    wanted = [(fold, case) for fold, names in folds.items() for case in names]
    rows: list[Row] = []
    faults: list[str] = []
    with ProgressBar(f"scoring {predictions.name}", len(wanted)) as bar:
        for fold, name in wanted:
            try:
                if name not in cases:
                    raise InputError(
                        f"{dataset.root}: has no labelled case {name}; name the study's data set with --data"
                    )
                scored = score_file(files[name], cases[name], dataset, tolerance_mm)
                require_same_truth(study, name, scored, dataset)
                rows += [{"fold": fold, "case": name} | row for row in scored]
            except InputError as error:
                faults += error.faults
            bar.advance(name)
    if faults:
        raise InputError(faults)
    return rows


def score_file(path: Path, case: Case, dataset: Dataset, tolerance_mm: float) -> list[Row]:
    """Rows of `case_metrics` of one label file, on the grid of the case's image.

    Raises:
        InputError: a file that cannot be read, on another grid, or with a label that is no structure.
    """
    assert case.label is not None  # of `Dataset.labelled`
    image = read_image(case.images)
    truth, predicted = read_label(case.label, image).array, read_label(path, image).array
    if int(predicted.max()) >= len(dataset.structures):
        raise InputError(
            f"{path}: holds the label {int(predicted.max())}, the data set has 0 to {len(dataset.structures) - 1}; "
            "write the labels of dataset.json"
        )
    return case_metrics(predicted, truth, dataset.structures, image.voxel_to_mm, tolerance_mm, ignore=dataset.ignore)


def require_same_truth(study: Study, case: str, rows: list[Row], dataset: Dataset) -> None:
    """Refuse true labels whose volumes are not those that the study's table holds.

    Raises:
        InputError: another volume of a structure.
    """
    if "truth_ml" not in study.cases:
        return
    held = study.cases[study.cases["case"] == case].groupby("structure")["truth_ml"].first()
    for row in rows:
        structure, found_ml = row["structure"], row["truth_ml"]
        if not np.isclose(held[structure], found_ml, atol=SAME_ML, rtol=0):
            raise InputError(
                f"{dataset.root}: {structure} of {case} has {found_ml:g} ml, {held[structure]:g} in the study; "
                "name the study's own data set with --data"
            )
