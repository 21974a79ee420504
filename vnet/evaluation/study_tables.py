"""The finished runs below some folders, read back into one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from vnet.core.config import ARMS
from vnet.core.errors import InputError
from vnet.core.files import read_json
from vnet.evaluation.metrics import HIGHER_IS_BETTER, METRICS

KEYS = ["fold", "seed", "case", "structure"]
REQUIRED = ("arm", *KEYS, "refined", "dice", "surface_dice", "hd95_mm", "assd_mm")
PROPERTIES = ("truth_ml", "predicted_ml", "thinness")
# after an arm with a head: its output before refinement, which otherwise counts as refined
UNREFINED = ":unrefined"


@dataclass(frozen=True)
class RunRecord:
    """One finished run: its table's place, and what run.json and config.yaml say (empty where they are missing)."""

    table: Path
    arm: str
    fold: str
    seed: int
    info: dict[str, Any]
    config: dict[str, Any]
    place: str  # of the table in its run: cases.csv, or evaluation/NAME/cases.csv

    @property
    def name(self) -> str:
        return f"{self.arm} fold {self.fold} seed {self.seed}"

    @property
    def root(self) -> Path | None:
        """The folder of studies that the run's study lies in: ROOT/STUDY/ARM/RUN/cases.csv."""
        folders = self.table.resolve().parents
        return folders[3] if self.place == "cases.csv" and len(folders) > 3 else None


@dataclass(frozen=True)
class Study:
    """The cases of several runs in one table, with `fold` as text, `refined` true or false, NaN for a blank."""

    cases: pd.DataFrame
    runs: tuple[RunRecord, ...]

    @cached_property
    def arms(self) -> list[str]:
        """The contract's arms first, in their order, then those of the study's config in its, then others by name."""
        found = set(self.cases["arm"])
        known = dict.fromkeys([*ARMS, *map(str, self.settings.get("arms") or {})])
        return [arm for arm in known if arm in found] + sorted(found - set(known))

    @cached_property
    def heads(self) -> list[str]:
        """Arms that hold refined rows."""
        refined = set(self.cases.loc[self.cases["refined"], "arm"])
        return [arm for arm in self.arms if arm in refined]

    @property
    def structures(self) -> list[str]:
        return list(dict.fromkeys(self.cases["structure"]))

    @property
    def metrics(self) -> list[str]:
        """The metrics that hold a number; Dice always."""
        return [m for m in METRICS if m in self.cases and (m == "dice" or self.cases[m].notna().any())]

    @property
    def settings(self) -> dict[str, Any]:
        """The `study` section of the runs' config, empty where there is none."""
        return next((run.config["study"] for run in self.runs if isinstance(run.config.get("study"), dict)), {})

    @property
    def choice_folds(self) -> set[str]:
        """Folds on which choices of the method were made."""
        return {str(fold) for fold in self.settings.get("choice_folds") or ()}

    def changed_runs(self, arm: str) -> int:
        """How many runs of an arm were made from a tree that differs from its commit (their commit ends with +)."""
        return sum(run.arm == arm and str(run.info.get("commit") or "").endswith("+") for run in self.runs)

    def has(self, comparison: str) -> bool:
        """Whether a comparison is `A - B` of two different sides that are there."""
        known = {*self.arms, *(arm + UNREFINED for arm in self.heads)}
        sides = [side.strip() for side in comparison.split(" - ")]
        return len(sides) == 2 and sides[0] != sides[1] and set(sides) <= known

    def on_folds(self, folds: set[str]) -> Study | None:
        """The runs of these folds alone; None where there is none."""
        runs = tuple(run for run in self.runs if run.fold in folds)
        return Study(self.cases[self.cases["fold"].isin(folds)], runs) if runs else None

    @cached_property
    def properties(self) -> pd.DataFrame:
        """Numbers by case from the properties.csv of the runs (index `case`); no columns where there is none."""
        files = [run.table.with_name("properties.csv") for run in self.runs]
        frames = [_read_properties(file) for file in files if file.is_file()]
        return pd.concat(frames).groupby(level=0).first() if frames else pd.DataFrame(index=pd.Index([], name="case"))

    @cached_property
    def _sides(self) -> dict[str, pd.DataFrame]:
        return {}

    def side(self, name: str) -> pd.DataFrame:
        """Rows of a side, indexed by fold, seed, case and structure."""
        if name not in self._sides:
            self._sides[name] = self._find_side(name)
        return self._sides[name]

    def _find_side(self, name: str) -> pd.DataFrame:
        arm = name.removesuffix(UNREFINED)
        refined = arm in self.heads and not name.endswith(UNREFINED)
        rows = self.cases[(self.cases["arm"] == arm) & (self.cases["refined"] == refined)]
        return rows.set_index(KEYS)

    def missing(self) -> list[str]:
        """Runs that the study's config or the other arms let expect, and that are not there."""
        arms = [*self.arms, *(arm for arm in self.settings.get("arms") or {} if arm not in self.arms)]
        folds = {run.fold for run in self.runs} | {str(fold) for fold in self.settings.get("folds") or ()}
        seeds = {run.seed for run in self.runs} | set(self.settings.get("seeds") or ())
        found = {(run.arm, run.fold, run.seed) for run in self.runs}
        return [
            f"{arm} fold {fold} seed {seed}"
            for arm in arms
            for fold in sorted(folds)
            for seed in sorted(seeds)
            if (arm, fold, seed) not in found
        ]


def read_study(paths: Sequence[Path]) -> Study:
    """Every cases.csv below `paths`; those in a folder `evaluation` only when the path itself lies in one.

    Raises:
        InputError: no table, one that cannot be read, two different runs of one arm, fold and seed, or runs
            of different data sets.
    """
    tables = find_tables(paths)
    frames: list[pd.DataFrame] = []
    runs: list[RunRecord] = []
    faults: list[str] = []
    for table in tables:
        try:
            frame = read_table(table)
        except InputError as error:
            faults += error.faults
            continue
        for key, rows in frame.groupby(["arm", "fold", "seed"]):
            record = _record(table, *map(str, key))
            twin = next((run for run in runs if run.name == record.name), None)
            if twin is None:
                runs.append(record)
                frames.append(rows)
            elif not _same(twin, record):
                faults.append(f"{table}: another run of {record.name} lies in {twin.table.parent}; name one of them")
    data = {run.info["data_hash"]: run for run in runs if run.info.get("data_hash")}
    if len(data) > 1:
        first, second = list(data.values())[:2]
        faults.append(f"{second.table}: made on another data set than {first.table}; compare them one by one")
    if faults:
        raise InputError(faults)
    if not frames:
        raise InputError(f"{', '.join(map(str, tables))}: no rows; the runs scored no case")
    return Study(pd.concat(frames, ignore_index=True), tuple(runs))


def find_tables(paths: Sequence[Path], *, missing_ok: bool = False) -> list[Path]:
    tables: dict[Path, None] = {}
    faults = []
    for path in paths:
        if not path.exists():
            faults.append(f"{path}: does not exist; name a folder of runs or a cases.csv")
            continue
        within = any(_is_evaluation(folder) for folder in (path.resolve(), *path.resolve().parents))
        found = [path] if path.is_file() else sorted(path.rglob("cases.csv"))
        found = [t for t in found if within or "evaluation" not in t.relative_to(path).parts]
        if not found and not missing_ok:
            faults.append(f"{path}: no cases.csv below; wait for a run to end, or name another folder")
        tables |= dict.fromkeys(found)
    if faults:
        raise InputError(faults)
    return list(tables)


def _is_evaluation(folder: Path) -> bool:
    return folder.name == "evaluation" and (folder.parent / "run.json").is_file()


def read_table(path: Path) -> pd.DataFrame:
    """A cases.csv with checked columns and types.

    Raises:
        InputError: not a CSV file, a column is missing, or a cell is not of its kind.
    """
    try:
        # a structure may be called NA: nothing but an empty cell is a blank
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a table ({error}); run the evaluation again") from None
    missing = [name for name in REQUIRED if name not in frame]
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; is it a cases.csv of this project?")
    faults = []
    for name in ("seed", *(column for column in (*METRICS, *PROPERTIES) if column in frame)):
        try:
            frame[name] = pd.to_numeric(frame[name])
        except (ValueError, TypeError):
            faults.append(f"{path}: column {name} must hold numbers; run the evaluation again")
        else:
            faults += _out_of_range(path, frame[name])
    if not frame["refined"].isin(["true", "false"]).all():
        faults.append(f"{path}: column refined must hold true or false")
    for name in ("arm", *KEYS):
        if frame[name].isna().any():
            faults.append(f"{path}: column {name} holds a blank")
    if frame.duplicated(["arm", *KEYS, "refined"]).any():
        faults.append(f"{path}: holds a case and structure twice; run the evaluation again")
    if faults:
        raise InputError(faults)
    return frame.assign(refined=frame["refined"] == "true")


def _out_of_range(path: Path, values: pd.Series) -> list[str]:
    """A fault where a score lies outside of its range: [0, 1] for Dice values, 0 and up for distances in mm."""
    name = str(values.name)
    if name not in METRICS:
        return []
    highest, rule = (1.0, "lie in [0, 1]") if HIGHER_IS_BETTER[name] else (math.inf, "be finite and 0 or more")
    outside = values[(values < 0) | (values > highest) | np.isinf(values)]
    advice = "run the evaluation again"
    return [f"{path}: column {name} must {rule}, got {outside.iloc[0]:g}; {advice}"] if len(outside) else []


def _record(table: Path, arm: str, fold: str, seed: str) -> RunRecord:
    # a table under evaluation/NAME belongs to the run above it
    folder = next((f for f in list(table.parents)[:3] if (f / "run.json").is_file()), table.parent)
    info = read_json(folder / "run.json") or {}
    return RunRecord(table, arm, fold, int(seed), info, _read_config(folder), str(table.relative_to(folder)))


def _read_properties(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, dtype={"case": str}).set_index("case")
        return frame.astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: must hold a column case and columns of numbers ({error})") from None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        nested = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return nested if isinstance(nested, dict) else {}


def _same(one: RunRecord, other: RunRecord) -> bool:
    """Whether both are copies of one run (as in runs/ and in results/)."""
    keys = [(run.info.get("config_hash"), run.place) for run in (one, other)]
    return keys[0] == keys[1] and keys[0][0] is not None
