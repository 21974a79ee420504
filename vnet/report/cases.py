"""Every case of a study with its mean Dice in each arm, and the worst of them."""

from __future__ import annotations

import pandas as pd

from vnet.evaluation.study_tables import Study
from vnet.report.formatting import score
from vnet.report.tables import Table

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


def _dice_by_case(study: Study) -> pd.DataFrame:
    """(cases, arms), cases by name; NaN where an arm did not score a case, or every structure of it is absent."""
    columns = {arm: study.side(arm)["dice"].groupby(["fold", "seed", "case"]).mean() for arm in study.arms}
    return pd.DataFrame({arm: means.groupby("case").mean() for arm, means in columns.items()}).sort_index()
