"""Subgroups of a study: single cases, cases that are alike, and voxels by their distance to the true surface."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from vnet.core.errors import InputError
from vnet.evaluation.comparison import paired_structures
from vnet.evaluation.refinement import ALL, COUNTS
from vnet.evaluation.statistics import summarise
from vnet.evaluation.study_tables import Study
from vnet.report.tables import Table, change, comparison_name, interval, score

WORST = 10


def case_anchors(study: Study) -> dict[str, str]:
    """Case to the id of its row on the page, in the order of the table of cases."""
    return {str(case): f"case-{number}" for number, case in enumerate(_dice_by_case(study).index, 1)}


def cases_table(study: Study) -> Table:
    """Mean foreground Dice of each case in each arm's final output, over its structures and seeds; a row a case."""
    dice = _dice_by_case(study)
    rows = [
        (str(case), *(score("dice", value) for value in row))
        for case, row in zip(dice.index, dice.to_numpy(), strict=True)
    ]
    return Table("Every case: mean foreground Dice", ("case", *map(str, dice.columns)), tuple(rows), first_number=1)


def worst_cases_table(study: Study) -> Table:
    """The cases of lowest mean Dice over all arms, each with its weakest structure."""
    dice = _dice_by_case(study)
    order = dice.mean(axis=1).dropna().sort_values(kind="stable").index[:WORST]
    by_structure = pd.concat([study.side(arm)["dice"] for arm in study.arms]).groupby(["case", "structure"]).mean()
    rows = []
    for case in order:
        of_case = by_structure[case].dropna()
        weakest = f"{of_case.idxmin()} {score('dice', float(of_case.min()))}"
        rows.append((str(case), weakest, *(score("dice", value) for value in dice.loc[case].to_numpy())))
    columns = ("case", "weakest structure, mean of arms", *map(str, dice.columns))
    title = f"The {len(rows)} worst cases, by their mean over arms: mean foreground Dice"
    return Table(title, columns, tuple(rows))


def volumes_table(study: Study) -> Table:
    """Predicted minus true volume by arm and structure, means over cases; no rows where the tables hold no volumes."""
    rows = []
    for arm in study.arms:
        side = study.side(arm)
        if not {"truth_ml", "predicted_ml"} <= set(side):
            continue
        known = side.dropna(subset=["truth_ml", "predicted_ml"])
        for structure, part in known.groupby("structure", sort=False):
            by_case = part.groupby("case")[["truth_ml", "predicted_ml"]].mean()
            true_ml, bias_ml = by_case["truth_ml"].mean(), (by_case["predicted_ml"] - by_case["truth_ml"]).mean()
            larger = (by_case["predicted_ml"] > by_case["truth_ml"]).mean()
            share = f"{bias_ml / true_ml:+.1%}" if true_ml else "-"
            rows.append((arm, str(structure), f"{true_ml:.3f}", f"{bias_ml:+.3f}", share, f"{larger:.0%}"))
    columns = ("arm", "structure", "true ml", "predicted - true ml", "of true", "cases too large")
    return Table("Volumes", columns, tuple(rows))


def _dice_by_case(study: Study) -> pd.DataFrame:
    """(cases, arms), cases by name; NaN where an arm did not score a case, or every structure of it is absent."""
    columns = {arm: study.side(arm)["dice"].groupby(["fold", "seed", "case"]).mean() for arm in study.arms}
    return pd.DataFrame({arm: means.groupby("case").mean() for arm, means in columns.items()}).sort_index()


OF_STRUCTURES = {"truth_ml": "true volume", "thinness": "share of true voxels on the surface"}
THIRDS = ("lowest third", "middle third", "highest third")
MOST_VALUES = 8  # a property of more values is cut into thirds


def subgroups_table(study: Study, comparisons: Sequence[str]) -> Table:
    """Mean difference of Dice and its interval, a row a comparison, property and group of cases."""
    rows = []
    for comparison in comparisons:
        pairs = paired_structures(study, comparison, "dice")
        for title, groups in grouped(study, comparison, pairs):
            for group in dict.fromkeys(groups.dropna().sort_values()):
                part = pairs[groups == group].groupby(["fold", "seed", "case"])["difference"].mean().reset_index()
                s = summarise(study.with_subjects(part))
                found = change("dice", s.mean), interval("dice", s.low, s.high), str(s.cases)
                rows.append((comparison_name(comparison), title, group_name(group), *found))
    note = (
        "Exploratory. Thirds are taken within each structure, then put together; a case may be in two of them with"
        " different structures."
    )
    columns = ("comparison", "property", "group", "difference", "95 % interval", "cases")
    return Table("Differences of Dice by size, thinness and properties of the cases", columns, tuple(rows), note, 3)


def grouped(study: Study, comparison: str, pairs: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    """(title, group of each row of `pairs`): a number in [0, 3) for thirds, written as text for values."""
    side = study.side(comparison.split(" - ")[0])
    for column, title in OF_STRUCTURES.items():
        if column in side:
            of_row = side[column].groupby(["case", "structure"]).mean()
            values = of_row.reindex(pd.MultiIndex.from_frame(pairs[["case", "structure"]]))
            yield title, thirds(pd.Series(values.to_numpy(), pairs.index), pairs)
    for name in study.properties:
        column = str(name)
        values = pairs["case"].map(study.properties[column])
        if values.nunique() > MOST_VALUES:
            yield column, thirds(values, pairs)
        elif values.nunique() > 1:
            yield column, values.map(lambda value: None if pd.isna(value) else (1, float(value)))


def thirds(values: pd.Series, pairs: pd.DataFrame) -> pd.Series:
    """(0, which third) of each row, among the cases of its structure."""
    own = pairs.assign(value=values).groupby(["structure", "case"])["value"].mean()
    rank = own.groupby("structure").rank(pct=True, method="first")
    of_row = rank.reindex(pd.MultiIndex.from_frame(pairs[["structure", "case"]])).to_numpy()
    return pd.Series([None if share != share else (0, min(int(3 * share - 1e-9), 2)) for share in of_row], pairs.index)


def group_name(group: tuple[int, float]) -> str:
    kind, value = group
    return f"{value:g}" if kind else THIRDS[int(value)]


BINS = ("distance_upto_mm", "margin_upto")
Counts = dict[str, dict[str, dict[str, int]]]  # arm -> bin -> kind -> voxels


def read_refinement(study: Study) -> pd.DataFrame:
    """Rows of every run's refinement.csv with its `arm`; empty where no run has one.

    Raises:
        InputError: a file that is not such a table.
    """
    frames, faults = [], []
    for run in study.runs:
        frame = run.rows("refinement.csv")
        if frame.empty:
            continue
        try:
            frame = frame.astype(dict.fromkeys(BINS, float) | dict.fromkeys(COUNTS, int))
            frames.append(frame[["structure", *BINS, *COUNTS]].assign(arm=run.arm))
        except (ValueError, KeyError) as error:
            path = run.table.with_name("refinement.csv")
            faults.append(f"{path}: not a table of refined voxels ({error}); run the evaluation again")
    if faults:
        raise InputError(faults)
    columns = ["arm", "structure", *BINS, *COUNTS]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def by_bin(rows: pd.DataFrame, structure: str, bins: str) -> Counts:
    """Voxels of one structure, summed over runs and cases.

    Args:
        rows: from `read_refinement`.
        bins: one of `BINS`.
    """
    counts: Counts = {}
    part = rows[rows["structure"] == structure]
    for arm, of_arm in part.groupby("arm", sort=False):
        table = of_arm.groupby(bins)[list(COUNTS)].sum()
        named = zip(_bin_names(list(table.index)), table.to_dict("records"), strict=True)
        counts[str(arm)] = {name: {str(k): int(v) for k, v in row.items()} for name, row in named}
    return counts


def refinement_table(counts: Mapping[str, Mapping[str, Mapping[str, int]]], title: str, bins: str) -> Table:
    """Voxels by arm and bin, from `vnet.report.subgroups.by_bin`."""
    rows = []
    for arm, table in counts.items():
        for name, c in table.items():
            refined = c["fixed"] + c["broken"] + c["unchanged"]
            after = c["wrong_before"] - c["fixed"] + c["broken"]
            shares = [f"{n / refined:.1%}" if refined else "-" for n in (c["wrong_before"], after)]
            rows.append((arm, name, f"{refined:,}", f"{c['fixed']:,}", f"{c['broken']:,}", *shares))
    columns = ("arm", bins, "refined", "fixed", "broken", "wrong before", "wrong after")
    return Table(title, columns, tuple(rows))


def voxel_tables(refined: pd.DataFrame) -> list[Table]:
    """What refinement did by voxel: by distance and by margin, and the risk by coverage.

    Args:
        refined: from `read_refinement`.
    """
    surface, margin = (by_bin(refined, ALL, bins) for bins in BINS)
    return [
        refinement_table(surface, "Refined voxels by distance to the true surface", "mm"),
        refinement_table(margin, "Refined voxels by margin of the unrefined output", "logits"),
        risk_table(margin),
    ]


def risk_table(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Table:
    """Risk against coverage of the refined voxels: the share that is wrong among the surest of them, from `by_bin` of
    the margins. Where refinement is left to the voxels below a margin, those above keep the risk `before`."""
    rows = []
    for arm, table in counts.items():
        kinds = ("fixed", "broken", "unchanged")
        total = sum(bins[kind] for bins in table.values() for kind in kinds)
        kept = before = after = 0
        lower_edges = ["", *table][: len(table)]  # each bin begins where the one before it ends
        for below, c in reversed(list(zip(lower_edges, table.values(), strict=True))):
            kept += sum(c[kind] for kind in kinds)
            before += c["wrong_before"]
            after += c["wrong_before"] - c["fixed"] + c["broken"]
            shown = f"above {below.removeprefix('to ')}" if below else "all"
            shares = (f"{part / whole:.1%}" for part, whole in ((kept, total), (before, kept), (after, kept)) if whole)
            rows.append((arm, shown, *shares) if kept else (arm, shown, "0.0%", "-", "-"))
    columns = ("arm", "margin", "coverage", "risk before", "risk after")
    return Table("Refined voxels: risk against coverage, the surest first", columns, tuple(rows))


def _bin_names(edges: list[float]) -> list[str]:
    """`to 1`, `to 2`, ..., `beyond`."""
    return ["beyond" if math.isinf(edge) else f"to {edge:g}" for edge in edges]
