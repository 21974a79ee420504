"""Runs read back from disk, and their differences: which arm is better, in which structure, by how much.

A *side* of a comparison is an arm's final output (`pointrend_s2`: refined where the arm has a head) or the
unrefined output of the same checkpoint (`pointrend_s2:unrefined`). Comparisons are written `FIRST - SECOND`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vnet.config import ARMS
from vnet.errors import InputError
from vnet.metrics import HIGHER_IS_BETTER, METRICS
from vnet.runs import read_json
from vnet.statistics import Paired, holm, summarise, verdict

KEYS = ["fold", "seed", "case", "structure"]
REQUIRED = ("arm", *KEYS, "refined", "dice", "surface_dice", "hd95_mm", "assd_mm")
PROPERTIES = ("truth_ml", "predicted_ml", "thinness")
MEAN = "mean"  # of the foreground structures of a case
UNREFINED = ":unrefined"
USUAL = (
    "pointrend_s2 - coarse_s2",
    "pointrend_s4 - coarse_s4",
    "pointrend_s2 - dense",
    "pointrend_s1 - dense",
)


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


@dataclass(frozen=True)
class Study:
    """The cases of several runs in one table, with `fold` as text, `refined` true or false, NaN for a blank."""

    cases: pd.DataFrame
    runs: tuple[RunRecord, ...]

    @cached_property
    def arms(self) -> list[str]:
        """The contract's arms first, in their order, then the others by name."""
        found = set(self.cases["arm"])
        return [arm for arm in ARMS if arm in found] + sorted(found - set(ARMS))

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
        return [metric for metric in METRICS if metric in self.cases and self.cases[metric].notna().any()]

    @property
    def settings(self) -> dict[str, Any]:
        """The `study` section of the runs' config, empty where there is none."""
        return next((run.config["study"] for run in self.runs if isinstance(run.config.get("study"), dict)), {})

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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One comparison in one structure (or their `MEAN`) and metric."""

    comparison: str
    structure: str
    metric: str
    summary: Paired | None  # None where the sides share no case
    p_holm: float | None  # of the confirmatory tests only
    verdict: str
    one_sided: int  # pairs left out as one side is blank: the structure is absent, and one side alone predicted it

    @property
    def confirmatory(self) -> bool:
        return self.p_holm is not None


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


def find_tables(paths: Sequence[Path]) -> list[Path]:
    tables: dict[Path, None] = {}
    faults = []
    for path in paths:
        if not path.exists():
            faults.append(f"{path}: does not exist; name a folder of runs or a cases.csv")
            continue
        within = any(_is_evaluation(folder) for folder in (path.resolve(), *path.resolve().parents))
        found = [path] if path.is_file() else sorted(path.rglob("cases.csv"))
        found = [t for t in found if within or "evaluation" not in t.relative_to(path).parts]
        if not found:
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


def usual_comparisons(study: Study) -> list[str]:
    """Those of the study's config, else the contract's among the arms present, else every arm against the first."""
    named = [c for c in study.settings.get("comparisons") or () if _sides_present(study, str(c))]
    usual = [c for c in USUAL if _sides_present(study, c)]
    first = study.arms[0]
    return named or usual or [f"{arm} - {first}" for arm in study.arms[1:]]


def refinement_comparisons(study: Study) -> list[str]:
    """Refinement on and off on one checkpoint, an arm with a head each."""
    return [f"{arm} - {arm}{UNREFINED}" for arm in study.heads]


def check_comparisons(study: Study, comparisons: Iterable[str]) -> None:
    """Raises InputError for a comparison that is not `A - B` of sides present in the study."""
    faults = [
        f"comparison {c!r}: must be `A - B` of {', '.join(study.arms)} (`:unrefined` after an arm with a head)"
        for c in comparisons
        if not _sides_present(study, c)
    ]
    if faults:
        raise InputError(faults)


def compare(study: Study, comparisons: Sequence[str], margin: float | None = None) -> list[Difference]:
    """Every comparison by metric and structure, the mean over structures first.

    The comparisons' mean foreground Dice are the confirmatory tests, corrected together by Holm's rule;
    refinement on and off is added for every arm with a head, and is exploratory like all else, unless it is
    named.

    Args:
        comparisons: named beforehand, as `pointrend_s2 - coarse_s2`.
        margin: Dice within which two sides are equivalent.
    """
    check_comparisons(study, comparisons)
    own = [name for name in refinement_comparisons(study) if name not in comparisons]
    found = [
        (name, structure, metric, *_paired(study, name, structure, metric))
        for name in [*comparisons, *own]
        for structure in (MEAN, *study.structures)
        for metric in study.metrics
    ]
    tested = {
        i: summary.p
        for i, (name, structure, metric, summary, _) in enumerate(found)
        if summary and name in comparisons and structure == MEAN and metric == "dice"
    }
    p_holm = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        Difference(
            comparison=name,
            structure=structure,
            metric=metric,
            summary=summary,
            p_holm=p_holm.get(i),
            verdict=_verdict(summary, metric, margin),
            one_sided=one_sided,
        )
        for i, (name, structure, metric, summary, one_sided) in enumerate(found)
    ]


def paired_cases(study: Study, comparison: str, structure: str, metric: str) -> pd.DataFrame:
    """Both sides of a comparison, a row a run and case: `fold, seed, case, first, second, difference`.

    Pairs that are blank in either side are left out; under `MEAN`, both sides average over the same
    structures.
    """
    return _case_means(_structure_pairs(study, comparison, structure, metric))


def arm_means(study: Study) -> pd.DataFrame:
    """Mean of each metric over cases, a row a side and structure: `side, structure, runs, cases, missed`, metrics.

    Seeds are averaged within a case first; `missed` counts rows (run and case) with a Dice of 0.
    """
    rows = []
    sides = [side for arm in study.arms for side in ([arm] + [arm + UNREFINED] * (arm in study.heads))]
    for side in sides:
        table = study.side(side).reset_index()
        for structure in (MEAN, *study.structures):
            part = table if structure == MEAN else table[table["structure"] == structure]
            by_case = part.groupby(["fold", "seed", "case"])[study.metrics].mean().groupby("case").mean()
            row: dict[Any, Any] = {
                "side": side,
                "structure": structure,
                "runs": len(part[["fold", "seed"]].drop_duplicates()),
                "cases": int(by_case["dice"].notna().sum()),
                "missed": int((part["dice"] == 0).sum()),
            }
            rows.append(row | by_case.mean().to_dict())
    return pd.DataFrame(rows)


def _sides_present(study: Study, comparison: str) -> bool:
    sides = comparison.split(" - ")
    known = {*study.arms, *(arm + UNREFINED for arm in study.heads)}
    return len(sides) == 2 and sides[0] != sides[1] and all(side.strip() in known for side in sides)


def _structure_pairs(study: Study, comparison: str, structure: str, metric: str) -> pd.DataFrame:
    first, second = (study.side(side.strip())[metric] for side in comparison.split(" - "))
    pairs = pd.DataFrame({"first": first, "second": second.reindex(first.index)})
    pairs = pairs[first.index.isin(second.index)]
    return pairs if structure == MEAN else pairs[pairs.index.get_level_values("structure") == structure]


def _case_means(pairs: pd.DataFrame) -> pd.DataFrame:
    means = pairs.dropna().groupby(["fold", "seed", "case"])[["first", "second"]].mean().reset_index()
    return means.assign(difference=means["first"] - means["second"])


def _paired(study: Study, comparison: str, structure: str, metric: str) -> tuple[Paired | None, int]:
    pairs = _structure_pairs(study, comparison, structure, metric)
    one_sided = int((pairs["first"].isna() ^ pairs["second"].isna()).sum())
    table = _case_means(pairs)
    if table.empty:
        return None, one_sided
    return summarise(table, higher_is_better=HIGHER_IS_BETTER[metric]), one_sided


def _verdict(summary: Paired | None, metric: str, margin: float | None) -> str:
    if summary is None:
        return "no shared case"
    # the margin is one of Dice
    return verdict(summary, margin if metric == "dice" else None, higher_is_better=HIGHER_IS_BETTER[metric])


def _record(table: Path, arm: str, fold: str, seed: str) -> RunRecord:
    # a table under evaluation/NAME belongs to the run above it
    folder = next((f for f in list(table.parents)[:3] if (f / "run.json").is_file()), table.parent)
    info = read_json(folder / "run.json") or {}
    return RunRecord(table, arm, fold, int(seed), info, _read_config(folder), str(table.relative_to(folder)))


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
