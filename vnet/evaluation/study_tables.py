"""The finished runs below some folders, read back into one table: from run folders and from kept results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from vnet.core.config import ARMS, Config
from vnet.core.errors import InputError
from vnet.core.files import read_json
from vnet.core.runs import RUNS, KeptRun, RunKey, is_finished, read_kept_runs, results_folder
from vnet.evaluation.metrics import HIGHER_IS_BETTER, METRICS

KEYS = ["fold", "seed", "case", "structure"]
REQUIRED = ("arm", *KEYS, "refined", "dice", "surface_dice", "hd95_mm", "assd_mm")
PROPERTIES = ("truth_ml", "predicted_ml", "thinness")
RUN_TABLES = {"curves.csv": "metrics.csv"}  # tables that are called otherwise in a run's folder
# after an arm with a head: its output before refinement, which otherwise counts as refined
UNREFINED = ":unrefined"


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
        table: the cases.csv that holds its rows: RUN_ROOT/STUDY/ARM/RUN/cases.csv of the run alone, or
            RESULTS/STUDY/cases.csv of all runs of a study.
        info: what run.json says; empty where it is missing.
        config: the nested keys of the resolved config; empty where it is missing.
        place: of the table in its run: cases.csv, or evaluation/NAME/cases.csv.
        shared: the tables hold other runs as well.
        foreign: label files of another program (`vnet.evaluation.predictions`).
    """

    table: Path
    arm: str
    fold: str
    seed: int
    info: dict[str, Any]
    config: dict[str, Any]
    place: str = "cases.csv"
    shared: bool = False
    foreign: bool = False

    @property
    def key(self) -> RunKey:
        return RunKey(self.arm, self.fold, self.seed)

    @property
    def name(self) -> str:
        return f"{self.arm} fold {self.fold} seed {self.seed}"

    @property
    def machine(self) -> str:
        """Processor and cores; "" where run.json does not name them."""
        info = self.info
        return f"{info['processor']}, {info.get('cores')} cores" if info.get("processor") else ""

    @property
    def changed_tree(self) -> bool:
        """Whether the run was made by code that differs from its commit."""
        return str(self.info.get("commit") or "").endswith("+")

    @property
    def root(self) -> Path | None:
        """The folder of studies that the run's study lies in."""
        folders, depth = self.table.resolve().parents, 1 if self.shared else 3
        own = self.place == "cases.csv" and not self.foreign
        return folders[depth] if own and len(folders) > depth else None

    @property
    def pictures(self) -> Path:
        """The folder of its pictures, which may be missing; kept results have none."""
        return self.table.parent / "pictures"

    def rows(self, name: str) -> pd.DataFrame:
        """The run's rows of another table beside its own, as text; no rows where there is none.

        Args:
            name: refinement.csv, or curves.csv (a row a validation).

        Raises:
            InputError: the file cannot be read as a table.
        """
        own_name = RUN_TABLES.get(name, name)
        path = self.table.with_name(name if self.shared else own_name)
        if not path.is_file() or not path.stat().st_size:
            return pd.DataFrame()
        frame = _read_text(path, path.stat().st_mtime_ns)
        if not self.shared:
            return frame
        own = (frame["arm"] == self.arm) & (frame["fold"] == self.fold) & (frame["seed"] == str(self.seed))
        return frame[own].drop(columns=["arm", "fold", "seed"]).reset_index(drop=True)


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
    def subjects(self) -> pd.Series:
        """Subject by case, of the runs with `data.groups`; a case without is a subject of its own. Empty where no run
        names subjects."""
        if "subject" not in self.cases:
            return pd.Series(dtype=str)
        named = self.cases.groupby("case")["subject"].first()
        return named.fillna(pd.Series(named.index, named.index))

    def with_subjects(self, differences: pd.DataFrame) -> pd.DataFrame:
        """A table with the column `case`, and a column `subject` where subjects are known."""
        if self.subjects.empty:
            return differences
        return differences.assign(subject=differences["case"].map(self.subjects))

    @cached_property
    def properties(self) -> pd.DataFrame:
        """Numbers by case from the properties.csv of the runs (index `case`); no columns where there is none."""
        files = [run.table.with_name("properties.csv") for run in self.runs]
        frames = [_read_properties(file) for file in dict.fromkeys(files) if file.is_file()]
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

    def of_complete_seeds(self) -> Study:
        """The study without the seeds of its config that lack an arm on a fold; all of it where every seed does.

        A seed that is still being trained has runs on some folds only, whose cases would weigh more.
        """
        partial = {int(name.rpartition(" ")[2]) for name in self.missing()} & set(self.settings.get("seeds") or ())
        if not {run.seed for run in self.runs} - partial:
            return self
        runs = tuple(run for run in self.runs if run.seed not in partial)
        return Study(self.cases[~self.cases["seed"].isin(partial)], runs)

    def missing(self) -> list[str]:
        """Runs that the study's config or the other arms let expect, and that are not there: `ARM fold F seed S`."""
        foreign = {run.arm for run in self.runs if run.foreign}
        arms = [*self.arms, *(arm for arm in self.settings.get("arms") or {} if arm not in self.arms)]
        arms = [arm for arm in arms if arm not in foreign]
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


def read_study(paths: Sequence[Path], only: Mapping[RunKey, Path] | None = None) -> Study:
    """The runs of every cases.csv below `paths`; of those in a folder `evaluation` only when the path lies in one.

    Args:
        paths: folders of runs (RUN_ROOT/STUDY), of kept results (RESULTS/STUDY), or tables.
        only: the runs to read, each with the table to read it from; None reads all.

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
            kept = read_kept_runs(table.parent) if (table.parent / RUNS).is_file() else None
        except InputError as error:
            faults += error.faults
            continue
        for key, rows in frame.groupby(["arm", "fold", "seed"]):
            record = _record(table, kept, *map(str, key))
            if record is None or (only is not None and only.get(record.key) != table):
                continue
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


def finished_tables(configs: Sequence[Config]) -> dict[RunKey, Path]:
    """The finished runs of a study, each with the cases.csv that holds it: that in RUN_ROOT, else the kept one.

    Tables of another config or data under the same name do not count.

    Args:
        configs: of the runs of one study.
    """
    kept = read_kept_runs(results_folder(configs[0])) if configs else {}
    found = {}
    for config in configs:
        key = RunKey.of(config)
        if is_finished(config):
            found[key] = config.run_folder / "cases.csv"
        elif key in kept and kept[key].config_hash == config.hash(str(kept[key].info.get("data_hash"))):
            found[key] = results_folder(config) / "cases.csv"
    return found


def _record(table: Path, kept: Mapping[RunKey, KeptRun] | None, arm: str, fold: str, seed: str) -> RunRecord | None:
    """The run of some rows of a table; None where the table is of kept results that do not list the run."""
    if kept is not None:
        run = kept.get(RunKey(arm, fold, int(seed)))
        return RunRecord(table, *run.key, run.info, run.config, shared=True) if run else None
    # a table under evaluation/NAME belongs to the run above it
    folder = next((f for f in list(table.parents)[:3] if (f / "run.json").is_file()), table.parent)
    info = read_json(folder / "run.json") or {}
    return RunRecord(table, arm, fold, int(seed), info, _read_config(folder), str(table.relative_to(folder)))


@lru_cache(maxsize=4)
def _read_text(path: Path, modified_ns: int) -> pd.DataFrame:
    """A CSV file as text. Kept, because every run of a study reads the same file for its own rows."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}); run the evaluation again") from None


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
