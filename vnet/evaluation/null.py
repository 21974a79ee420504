"""The null: the same interval between two trainings of one arm that differ in the seed alone.

There is no difference to find between them. An interval over cases that excludes 0 here shows how far two trainings of
one arm lie apart.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vnet.evaluation.pairs import case_means, pair_rows
from vnet.evaluation.statistics import Paired, summarise
from vnet.evaluation.study_tables import KEYS, Study


@dataclass(frozen=True)
class Null:
    """Mean foreground Dice of one arm with `first` seed minus that with `second` seed, over the folds of both."""

    arm: str
    first: int
    second: int
    summary: Paired


def seed_nulls(study: Study) -> list[Null]:
    """Every pair of seeds of every arm that share a case, of the final output."""
    nulls = []
    for arm in study.arms:
        rows = study.side(arm).reset_index()
        seeds = sorted(set(rows["seed"].tolist()))
        of_seed = {seed: rows[rows["seed"] == seed].assign(seed=0).set_index(KEYS) for seed in seeds}
        for first, second in itertools.combinations(seeds, 2):
            table = case_means(pair_rows(of_seed[first], of_seed[second], "dice").scores)
            if not table.empty:
                nulls.append(Null(arm, first, second, summarise(table)))
    return nulls
