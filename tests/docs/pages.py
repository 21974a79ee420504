"""The pages that the tests of the docs read: their headings, tables, blocks of code and links; and the figures of Dice,
distance and cost from results/, by the comment before a table.

`figures: STUDY folds 1 2 3` stands before a table of arms (first column `` `arm` ``) or of comparisons (`` `A - B` ``).
`refinement ARM` after it asks for voxels by distance to the surface, `by PROPERTY` for differences by the cases' own
properties, `null` for differences between seeds of one arm. `figures: benchmark KIND` takes the Dice from
results/benchmarks.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from vnet.evaluation.statistics import Paired, SeedSpread, holm, noninferiority, summarise, verdict

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LOG = ROOT / "results" / "LOG.md"


@dataclass(frozen=True, kw_only=True)
class MarkdownTable:
    """A table of a page, the HTML comment on the line before it, and its text as it stands on the page."""

    comment: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: str


def tables(text: str) -> Iterator[MarkdownTable]:
    """Every Markdown table of a page."""
    pattern = r"(?:^<!-- (?P<comment>.*) -->\n)?(?P<table>(?:^\|.*\|\n)+)"
    for found in re.finditer(pattern, text, re.MULTILINE):
        header, _, *rows = (cells(line) for line in found["table"].splitlines())
        yield MarkdownTable(comment=found["comment"] or "", header=header, rows=tuple(rows), text=found["table"])


def cells(line: str) -> tuple[str, ...]:
    """The cells of one line of a table, without the emphasis of `**`."""
    return tuple(cell.strip().strip("*") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|")))


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code of one language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one of the same or a higher level."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {heading!r}"
    return found[2]


def anchors(text: str) -> set[str]:
    """The fragments that links may name: headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """The targets of links and pictures that lie in this repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [target for target in found if not re.match(r"https?:", target)]


def one_line(text: str) -> str:
    """A text with every run of white space as one space."""
    return " ".join(text.split())


def execute(code: str) -> dict[str, Any]:
    """The names that a block of Python leaves."""
    names: dict[str, Any] = {}
    exec(compile(code, "docs", "exec"), names)
    return names


def run_vnet(words: list[str], folder: Path) -> str:
    """The stdout of `vnet WORDS`, run in a folder by this checkout's packages; it must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vnet", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"vnet {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


KEYS = ["fold", "seed", "case"]
UNREFINED = ":unrefined"  # after an arm with a head: the same networks without it


@cache
def read(study: str, name: str) -> pd.DataFrame:
    """The table NAME.csv of a study."""
    return pd.read_csv(ROOT / "results" / study / f"{name}.csv", dtype={"case": str})


class StudyFigures:
    """A study's figures on some folds, and on some seeds where a study is not complete."""

    def __init__(self, study: str, folds: tuple[int, ...], seeds: tuple[int, ...] = ()) -> None:
        self.study = study
        self.folds, self.seeds = folds, seeds
        cases = self.here(read(study, "cases"))
        refined = cases["refined"].astype(str).str.lower() == "true"
        self.heads = set(cases.loc[refined, "arm"])
        side = cases["arm"].where(refined | ~cases["arm"].isin(self.heads), cases["arm"] + UNREFINED)
        self.cases = cases.assign(side=side)
        self.structures = set(cases["structure"])

    def here(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of these folds and seeds."""
        rows = rows[rows["fold"].isin(self.folds)]
        return rows[rows["seed"].isin(self.seeds)] if self.seeds else rows

    def mean(self, side: str, metric: str, structure: str | None = None, *, seed: int | None = None) -> float:
        """Mean over cases of the mean over structures and trainings; or of one structure, of one seed."""
        rows = self.cases[self.cases["side"] == side]
        rows = rows if seed is None else rows[rows["seed"] == seed]
        rows = rows if structure is None else rows[rows["structure"] == structure]
        assert len(rows), f"{self.study} holds no {side}"
        return float(rows.groupby("case")[metric].mean().mean())

    def differences(self, comparison: str) -> pd.DataFrame:
        """`fold, seed, case, difference` of Dice, averaged over structures."""
        means = self.cases.groupby(["side", *KEYS])["dice"].mean()
        first, second = (means[side] for side in comparison.split(" - "))
        table = (first - second).rename("difference").dropna().reset_index()
        if "subject" not in self.cases:
            return table
        return table.assign(subject=table["case"].map(self.cases.groupby("case")["subject"].first()))

    def third_by_volume(self, comparison: str, third: int) -> float:
        """Mean difference in one third of the cases of each structure by true volume; 0 is the smallest third."""
        rows = self.cases.set_index(["side", *KEYS, "structure"])
        first, second = (rows.loc[side] for side in comparison.split(" - "))
        table = first[["truth_ml"]].assign(difference=first["dice"] - second["dice"])
        table = table.groupby(["structure", "case"]).mean()
        rank = table["truth_ml"].groupby("structure").rank(pct=True, method="first")
        inside = (rank * 3 - 1e-9).astype(int) == third
        return float(table[inside].groupby("case")["difference"].mean().mean())

    def summary(self, comparison: str) -> Paired:
        """The difference with its interval over cases, as `vnet compare` prints it."""
        return summarise(self.differences(comparison))

    def over_trainings(self, comparison: str) -> tuple[float, float]:
        """The interval of the mean difference over trainings: mean +- t(n - 1) sd / sqrt(n)."""
        means = self.differences(comparison).groupby(["fold", "seed"])["difference"].mean()
        half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
        return float(means.mean() - half), float(means.mean() + half)

    def spread(self, comparison: str) -> SeedSpread:
        """The standard deviation of a difference between seeds."""
        found = self.summary(comparison).seed_spread
        assert found is not None
        return found

    def null(self, arm: str, first: int, second: int) -> Paired:
        """The difference between two seeds of one arm."""
        rows = self.cases[self.cases["side"] == arm]
        means = rows.groupby(["seed", "fold", "case"])["dice"].mean()
        table = (means[first] - means[second]).rename("difference").reset_index()
        return summarise(table.assign(seed=0))

    def p_holm(self, comparisons: list[str]) -> dict[str, float]:
        """p of each comparison after Holm's correction of all of them."""
        corrected = holm([self.summary(comparison).p for comparison in comparisons])
        return dict(zip(comparisons, corrected, strict=True))

    def by_property(self, comparison: str, name: str, value: float) -> float:
        """Mean difference over the cases with one value of a property."""
        properties = read(self.study, "properties").drop_duplicates("case").set_index("case")[name]
        table = self.differences(comparison)
        return float(table[table["case"].map(properties) == value]["difference"].mean())

    def voxels(self, arm: str, kind: str, low_mm: float, high_mm: float) -> int:
        """Voxels that refinement fixed or broke, whose distance to the surface lies above low_mm and up to high_mm."""
        rows = self.here(read(self.study, "refinement"))
        rows = rows[(rows["arm"] == arm) & (rows["structure"] == "all structures")]
        upto = rows["distance_upto_mm"]
        return int(rows[(upto > low_mm) & (upto <= high_mm)][kind].sum())

    def volume_bias(self, side: str, structure: str) -> float:
        """Mean predicted minus mean true volume of a structure, as a share of the true one."""
        rows = self.cases[(self.cases["side"] == side) & (self.cases["structure"] == structure)]
        return float(rows["predicted_ml"].mean() / rows["truth_ml"].mean() - 1)

    def wrong(self, arm: str, low: float, high: float) -> tuple[float, float, float]:
        """Of the refined voxels with an unrefined margin above low and up to high: their share of all, wrong before
        and after."""
        rows = self.here(read(self.study, "refinement"))
        rows = rows[(rows["arm"] == arm) & (rows["structure"] == "all structures")]
        found = rows[(rows["margin_upto"].fillna(math.inf) > low) & (rows["margin_upto"].fillna(math.inf) <= high)]
        asked, asked_here = (part[["fixed", "broken", "unchanged"]].sum().sum() for part in (rows, found))
        before, after = found["wrong_before"].sum(), (found["wrong_before"] - found["fixed"] + found["broken"]).sum()
        return asked_here / asked, before / asked_here, after / asked_here

    def rise(self, arm: str, before: int, end: int) -> float:
        """Mean rise of the validation Dice between two steps."""
        curves = self.here(read(self.study, "curves"))
        by_step = curves[curves["arm"] == arm].groupby("step")["dice"].mean()
        return float(by_step[end] - by_step[before])

    def cost(self, arm: str, name: str) -> float:
        """Mean of a number of runs.csv over the runs of an arm on these folds."""
        runs = self.here(read(self.study, "runs"))
        values = runs[runs["arm"] == arm][name]
        assert len(values), f"{self.study} holds no run of {arm}"
        return float(values.mean())


@cache
def benchmark(name: str, table: str | None = None) -> pd.DataFrame:
    """The rows of a benchmark in a table of results/benchmarks, by default of its own name; all cells as text."""
    rows = pd.read_csv(ROOT / "results" / "benchmarks" / f"{table or name}.csv", dtype=str, keep_default_na=False)
    return rows[rows["benchmark"] == name]


SCORES = {
    "Dice": "dice",
    "Dice over all sheets": "dice",
    "surface Dice 1 mm": "surface_dice",
    "HD95 mm": "hd95_mm",
    "ASSD mm": "assd_mm",
    "Dice within 2 mm": "band_dice",
}
SAME_STEP = {"study_converged": "study_hippocampus"}  # studies of one network, patch and batch
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "multiply-adds": ("multiply_adds", lambda value: f"{value / 1e9:.2f} G"),
    "s per step": ("seconds_per_step", lambda value: f"{value:.3f}"),
    "peak MiB": ("peak_memory_mib", lambda value: f"{value:.0f}"),
    "steps": ("steps", lambda value: f"{value:.0f}"),
    "steps in 110 s": ("steps", lambda value: f"{value:.0f}"),
}


def dice(value: float, digits: int = 4) -> str:
    """.8708"""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


def change(value: float, digits: int = 4) -> str:
    """+.0128"""
    return f"{value:+.{digits}f}".replace("0.", ".", 1)


def interval(low: float, high: float) -> str:
    return f"{change(low)} to {change(high)}"


@cache
def figures(study: str, *folds: int, seeds: tuple[int, ...] = ()) -> StudyFigures:
    return StudyFigures(study, folds, seeds)


def digits_of(cell: str) -> int:
    return len(cell.split(" ")[0].split(".")[-1])


def score_cell(found: StudyFigures, arm: str, column: str, cell: str) -> str:
    """What a table of arms should show in a column; the cell itself where the column holds no figure."""
    if column == "unrefined Dice":
        return dice(found.mean(arm + UNREFINED, "dice"), digits_of(cell)) if arm in found.heads else ""
    if column == "training step, `dense` = 1":
        rows = pd.concat([benchmark("step"), benchmark("step_bodies", "step")])
        steps = rows.set_index(["size", "config", "arm"])["of_dense"]
        config = SAME_STEP.get(found.study, found.study)
        return f"{float(steps['48x64x48', config, arm]):.3f}"
    if column == "s of its steps, alone":
        seconds = benchmark("step").set_index(["size", "config", "arm"])["seconds"]
        alone = float(seconds["48x64x48", "study_hippocampus", arm.removesuffix("_equal_time")])
        return f"{found.cost(arm, 'steps') * alone:.0f}"
    if column in COSTS:
        name, shown = COSTS[column]
        return shown(found.cost(arm, name))
    if column.endswith(" mm") and column in SCORES and "Dice" not in column:
        return f"{found.mean(arm, SCORES[column]):.2f}"
    if column in SCORES:
        return dice(found.mean(arm, SCORES[column]), digits_of(cell))
    if column in found.structures:
        return dice(found.mean(arm, "dice", column), digits_of(cell))
    return cell


def comparison_cell(found: StudyFigures, comparison: str, column: str, cell: str, named: list[str]) -> str:
    summary = found.summary(comparison)
    if column == "fold 0":
        return change(figures(found.study, 0).summary(comparison).mean)
    if column == "p (Holm)":
        p = found.p_holm(named)[comparison]
        return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
    if column == "verdict":
        return verdict(summary, found.p_holm(named)[comparison])
    if margin := re.fullmatch(r"verdict within ([\d.]+)", column):
        return verdict(summary, found.p_holm(named)[comparison], float(margin[1]))
    if margin := re.fullmatch(r"non-inferior by ([\d.]+)", column):
        return noninferiority(summary, float(margin[1])).replace("non-inferior", "yes")
    if column == "seed spread":
        spread = found.spread(comparison)
        return f"{dice(spread.sd)} ({dice(spread.low)} to {dice(spread.high)})"
    return {
        "difference in Dice": change(summary.mean),
        "interval over cases": interval(summary.low, summary.high),
        "interval over subjects": interval(summary.low, summary.high),
        "interval over subjects and trainings": interval(summary.low, summary.high),  # from six trainings on
        "interval over trainings": interval(*found.over_trainings(comparison)),
        "better / worse": f"{100 * summary.better:.0f} % / {100 * summary.worse:.0f} %",
    }.get(column, cell)


def property_cells(found: StudyFigures, comparison: str, header: tuple[str, ...], row: tuple[str, ...]) -> list[str]:
    """A row of differences by thickness and noise; the header names a property once, then its values alone."""
    expected, name = [], ""
    for column, cell in zip(header, row, strict=True):
        name = "thickness_vox" if "thick" in column else "noise" if "noise" in column else name
        value = float(re.findall(r"[\d.]+", column)[0])
        expected.append(change(found.by_property(comparison, name, value), digits_of(cell)))
    return expected


def voxel_cells(found: StudyFigures, arm: str, distance: str) -> list[str]:
    """Voxels fixed and broken in a row `to 1 mm` or `1 to 2 mm`."""
    edges = [float(number) for number in re.findall(r"\d+", distance)]
    low, high = edges if len(edges) == 2 else (0.0, edges[0])
    return [str(found.voxels(arm, kind, low, high)) for kind in ("fixed", "broken")]


def null_cells(found: StudyFigures, arm: str, header: tuple[str, ...]) -> list[str]:
    """The differences between two seeds of one arm, each column named `seed A - seed B`."""
    expected = []
    for column in header:
        first, second = (int(seed) for seed in re.findall(r"\d+", column))
        summary = found.null(arm, first, second)
        expected.append(f"{change(summary.mean)} ({interval(summary.low, summary.high)})")
    return expected


def refinement_cells(kind: str, header: tuple[str, ...], row: tuple[str, ...]) -> list[str]:
    """Dice by the share of voxels asked, or by the largest margin, from results/benchmarks/refinement.csv."""
    if row[0] != "Dice":
        return list(row[1:])
    by_case = benchmark("refinement").set_index("case")["dice"]
    expected = []
    for column in header:
        number = column.removesuffix(" %")
        case = f"share {float(number) / 100:g}" if kind == "share" and number != "nothing" else f"margin {number}"
        expected.append(dice(float(by_case["nothing refined" if number == "nothing" else case])))
    return expected


def volume_cells(row: tuple[str, ...]) -> list[str]:
    """Size, spacing, seconds, memory and Dice of a volume tried, from results/benchmarks."""
    table = pd.concat([benchmark("volume"), benchmark("kinds", "volume")])
    found = table[(table["volume"] == row[0]) & (table["arm"] == row[1].strip("`"))].iloc[0]
    words = [found[name] for name in ("size", "spacing_mm", "orientation", "channels", "classes")]
    return [row[1], *words, f"{float(found['seconds']):.2f}", found["peak_memory_mib"], dice(float(found["dice"]), 3)]


def expected_row(table: MarkdownTable, row: tuple[str, ...]) -> list[str]:
    """The cells that a row should hold by results/."""
    if table.comment.startswith("figures: benchmark"):
        kind = table.comment.split()[-1]
        found_cells = volume_cells(row) if kind == "volumes" else refinement_cells(kind, table.header[1:], row)
        return [row[0], *found_cells]
    said = re.fullmatch(
        r"figures: (?P<study>\w+) folds (?P<folds>[\d ]+?)(?: seeds (?P<seeds>[\d ]+?))?"
        r"(?: refinement (?P<arm>\w+)| by (?P<properties>.*)|(?P<null> null))?",
        table.comment.strip(),
    )
    assert said, f"not understood: {table.comment}"
    folds, seeds = (tuple(map(int, (said[part] or "").split())) for part in ("folds", "seeds"))
    found = figures(said["study"], *folds, seeds=seeds)
    if said["arm"]:
        return [row[0], *voxel_cells(found, said["arm"], row[0])]
    name = re.findall(r"`([^`]+)`", row[0])[0]
    if said["null"]:
        return [row[0], *null_cells(found, name, table.header[1:])]
    if said["properties"]:
        return [row[0], *property_cells(found, name, table.header[1:], row[1:])]
    columns = list(zip(table.header, row, strict=True))[1:]
    if " - " in name:
        named = [re.findall(r"`([^`]+)`", other[0])[0] for other in table.rows]
        return [row[0], *(comparison_cell(found, name, column, cell, named) for column, cell in columns)]
    if table.header[1] == "Dice (unrefined)":
        pair = dice(found.mean(name, "dice"))
        pair += f" ({dice(found.mean(name + UNREFINED, 'dice'))})" if name in found.heads else ""
        return [row[0], pair, *row[2:]]
    return [row[0], *(score_cell(found, name, column, cell) for column, cell in columns)]
