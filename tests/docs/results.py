"""Figures of Dice, distance and cost, recomputed from the tables in results/."""

from __future__ import annotations

from functools import cache

import pandas as pd
from scipy import stats

from tests.docs.pages import ROOT
from vnet.evaluation.statistics import Paired, SeedSpread, holm, summarise

KEYS = ["fold", "seed", "case"]
UNREFINED = ":unrefined"  # after an arm with a head: the same networks without it


@cache
def read(study: str, name: str) -> pd.DataFrame:
    """The table NAME.csv of a study."""
    return pd.read_csv(ROOT / "results" / study / f"{name}.csv", dtype={"case": str})


class StudyFigures:
    """A study's figures on some folds."""

    def __init__(self, study: str, folds: tuple[int, ...]) -> None:
        self.study = study
        cases = read(study, "cases")
        cases = cases[cases["fold"].isin(folds)]
        self.folds = folds
        refined = cases["refined"].astype(str).str.lower() == "true"
        self.heads = set(cases.loc[refined, "arm"])
        side = cases["arm"].where(refined | ~cases["arm"].isin(self.heads), cases["arm"] + UNREFINED)
        self.cases = cases.assign(side=side)
        self.structures = set(cases["structure"])

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
        return (first - second).rename("difference").dropna().reset_index()

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
        rows = read(self.study, "refinement")
        rows = rows[(rows["arm"] == arm) & rows["fold"].isin(self.folds) & (rows["structure"] == "all structures")]
        upto = rows["distance_upto_mm"]
        return int(rows[(upto > low_mm) & (upto <= high_mm)][kind].sum())

    def cost(self, arm: str, name: str) -> float:
        """Mean of a number of runs.csv over the runs of an arm on these folds."""
        runs = read(self.study, "runs")
        values = runs[(runs["arm"] == arm) & runs["fold"].isin(self.folds)][name]
        assert len(values), f"{self.study} holds no run of {arm}"
        return float(values.mean())


@cache
def benchmark(name: str) -> pd.DataFrame:
    """A table of results/benchmarks, all cells as text."""
    return pd.read_csv(ROOT / "results" / "benchmarks" / f"{name}.csv", dtype=str, keep_default_na=False)
