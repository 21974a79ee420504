"""Cross-validation folds: nnU-Net's rule, or those of a splits file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


def select_fold(dataset: Dataset, fold: int | Literal["all"]) -> Fold:
    """A fold of the labelled cases.

    The folds are those of `splits.json` ({"folds": [{"train": [...], "val": [...]}]}) or nnU-Net's
    `splits_final.json` ([{"train": [...], "val": [...]}]) where the data set holds one, else nnU-Net's rule: names
    sorted, KFold of 5, shuffled with random state 12345; leave-one-out below five cases.

    Args:
        fold: number, or `all` for every case to train on and none to validate on.

    Raises:
        InputError: no such fold, an empty one, or a splits file that does not fit the data set.
    """
    names = sorted(case.name for case in dataset.labelled)
    if fold == "all":
        return Fold(tuple(names), ()) if names else refuse_empty("all", "no labelled case")
    folds = all_folds(dataset)
    if not 0 <= fold < len(folds):
        last = len(folds) - 1
        raise InputError(f"data.fold: fold {fold} does not exist; this data set has folds 0 to {last}, and all")
    chosen = folds[fold]
    if not chosen.train or not chosen.val:
        return refuse_empty(fold, "no case to train on" if not chosen.train else "no case to validate on")
    return chosen


def all_folds(dataset: Dataset) -> list[Fold]:
    """The folds of the labelled cases, as `select_fold` numbers them.

    Raises:
        InputError: a splits file that does not fit the data set.
    """
    names = sorted(case.name for case in dataset.labelled)
    folds = listed_folds(dataset, set(names))
    return kfold_folds(names) if folds is None else folds


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
