"""Cross-validation folds: nnU-Net's rule, or those of a splits file; by subject where a table names subjects."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vnet.core.errors import InputError
from vnet.data.dataset import Dataset
from vnet.data.description import read_json

FOLDS, RANDOM_STATE = 5, 12345  # nnU-Net's


@dataclass(frozen=True)
class Fold:
    """Names of the cases to train on and to validate on, each sorted."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def select_fold(dataset: Dataset, fold: int | Literal["all"], groups: Mapping[str, str] | None = None) -> Fold:
    """A fold of the labelled cases.

    The folds are those of `splits.json` ({"folds": [{"train": [...], "val": [...]}]}) or nnU-Net's
    `splits_final.json` ([{"train": [...], "val": [...]}]) where the data set holds one, else nnU-Net's rule: names
    sorted, KFold of 5, shuffled with random state 12345; leave-one-out below five cases.

    Args:
        fold: number, or `all` for every case to train on and none to validate on.
        groups: case name -> subject, of `read_groups`: the folds are then `grouped_folds`.

    Raises:
        InputError: no such fold, an empty one, or a splits file or groups that do not fit the data set.
    """
    names = sorted(case.name for case in dataset.labelled)
    if fold == "all":
        return Fold(tuple(names), ()) if names else refuse_empty("all", "no labelled case")
    folds = all_folds(dataset, groups)
    if not 0 <= fold < len(folds):
        last = len(folds) - 1
        raise InputError(f"data.fold: fold {fold} does not exist; this data set has folds 0 to {last}, and all")
    chosen = folds[fold]
    if not chosen.train or not chosen.val:
        return refuse_empty(fold, "no case to train on" if not chosen.train else "no case to validate on")
    return chosen


def all_folds(dataset: Dataset, groups: Mapping[str, str] | None = None) -> list[Fold]:
    """The folds of the labelled cases, as `select_fold` numbers them.

    Raises:
        InputError: a splits file or groups that do not fit the data set.
    """
    names = sorted(case.name for case in dataset.labelled)
    listed = listed_folds(dataset, set(names))
    folds = kfold_folds(names) if listed is None else listed
    return grouped_folds(folds, groups) if groups else folds


def grouped_folds(folds: list[Fold], groups: Mapping[str, str]) -> list[Fold]:
    """Folds by subject: no subject has one case in training and another in validation.

    The first fold validates on every case of each subject that has a case in the first of `folds`, so that choices
    made on it have seen no other subject. The other folds divide the other subjects as nnU-Net divides cases: sorted,
    KFold, shuffled with random state 12345. Each fold trains on all other cases of `folds`.

    Args:
        folds: by case, whose number stays.
        groups: case name -> subject.

    Raises:
        InputError: a case without a subject, or fewer other subjects than folds.
    """
    cases = sorted({name for fold in folds for name in (*fold.train, *fold.val)})
    if unnamed := [name for name in cases if name not in groups]:
        raise InputError(f"data.groups: names no subject of case {shorten(unnamed)}; add a row case,subject for each")
    chosen = {groups[name] for name in folds[0].val}
    others = sorted({groups[name] for name in cases} - chosen)
    if len(others) < len(folds) - 1:
        raise InputError(
            f"data.groups: {len(others)} subjects have no case in fold 0, too few for {len(folds) - 1} further folds; "
            "mend the table or the splits file"
        )
    parts = [chosen]
    if len(folds) == 2:
        parts.append(set(others))
    elif len(folds) > 2:
        parts += [set(fold.val) for fold in kfold_folds(others, len(folds) - 1)]
    return [
        Fold(
            tuple(name for name in cases if groups[name] not in subjects),
            tuple(name for name in cases if groups[name] in subjects),
        )
        for subjects in parts
    ]


def read_groups(path: Path) -> dict[str, str]:
    """Case name -> subject, from a CSV file with the columns `case` and `subject`.

    Raises:
        InputError: the file cannot be read, lacks a column, leaves a cell blank, or names a case twice.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a CSV file"
        raise InputError(f"data.groups: {path} cannot be read ({reason}); name a CSV file of case,subject") from None
    if not {"case", "subject"} <= set(columns):
        raise InputError(f"data.groups: {path} must have the columns case and subject, got {', '.join(columns)!r:.80}")
    groups: dict[str, str] = {}
    faults = []
    for number, row in enumerate(rows, start=2):
        case, subject = ((row[name] or "").strip() for name in ("case", "subject"))
        if not case or not subject:
            faults.append(f"data.groups: {path} line {number} must name a case and its subject; fill the cell")
        elif case in groups:
            faults.append(f"data.groups: {path} line {number} names case {case!r:.80} again; keep one row a case")
        groups[case] = subject
    if faults:
        raise InputError(faults)
    return groups


def refuse_empty(fold: int | str, what: str) -> Fold:
    """Raise the error of an empty fold; the return type serves expressions."""
    raise InputError(f"data.fold: fold {fold} has {what}; add labelled cases, mend the splits file, or use all")


def kfold_folds(names: list[str], count: int = FOLDS) -> list[Fold]:
    """nnU-Net's folds of sorted names: KFold of 5 (or `count`), shuffled; leave-one-out below so many cases."""
    from sklearn.model_selection import KFold

    if len(names) < 2:
        return [Fold(tuple(names), ())]
    if len(names) < count:
        return [Fold(tuple(n for n in names if n != name), (name,)) for name in names]
    split = KFold(count, shuffle=True, random_state=RANDOM_STATE).split(names)
    return [Fold(tuple(names[i] for i in train), tuple(names[i] for i in val)) for train, val in split]


def listed_folds(dataset: Dataset, names: set[str]) -> list[Fold] | None:
    """The folds of a splits file, None where there is no such file."""
    path = dataset.root / "splits.json"
    if path.is_file():
        entries: Any = read_json(path, dict, 'an object {"folds": [...]}').get("folds")
    elif (path := dataset.root / "splits_final.json").is_file():
        entries = read_json(path, list, "a list of folds")
    else:
        return None
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f'{path}: must list folds as {{"train": [...], "val": [...]}}, got {entries!r:.80}; correct it'
        )
    faults = [f"{path}: fold {i} {fault}" for i, entry in enumerate(entries) for fault in entry_faults(entry, names)]
    if faults:
        raise InputError(faults)
    return [Fold(tuple(sorted(entry["train"])), tuple(sorted(entry["val"]))) for entry in entries]


def entry_faults(entry: object, names: set[str]) -> list[str]:
    """Faults of one fold of a splits file."""
    if not isinstance(entry, Mapping) or not {"train", "val"} <= entry.keys():
        return [f'must be {{"train": [...], "val": [...]}}, got {entry!r:.80}; correct it']
    faults = []
    for key in ("train", "val"):
        listed = entry[key]
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            return [f"{key} must be a list of case names, got {listed!r:.80}; correct it"]
        unknown = sorted(set(listed) - names)
        if unknown:
            faults.append(f"{key} names {shorten(unknown)}, not a labelled case of the data set; correct it")
        if len(set(listed)) < len(listed):
            faults.append(f"{key} names a case twice; correct it")
    shared = sorted(set(entry["train"]) & set(entry["val"]))
    if shared:
        faults.append(f"has {shorten(shared)} in both train and val; a case may be in one only")
    return faults


def shorten(names: list[str]) -> str:
    """`'a' and 3 more`."""
    return repr(names[0])[:120] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
