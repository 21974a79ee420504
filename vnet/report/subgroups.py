"""Differences of Dice by what a case is like: size and thinness of its structures, and the data set's own numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from vnet.evaluation.pairs import paired_structures
from vnet.evaluation.statistics import summarise
from vnet.evaluation.study_tables import Study
from vnet.report.formatting import change, comparison_name, interval
from vnet.report.tables import Table

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
                s = summarise(part)
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
