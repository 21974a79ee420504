"""The null between seeds of one arm, against differences that are known and against the committed study of seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from vnet.evaluation.null import seed_nulls
from vnet.evaluation.study_tables import read_study

RESULTS = Path(__file__).parents[2] / "results"


def test_every_pair_of_seeds_of_an_arm_over_the_folds_they_share(tmp_path, make_run):
    for seed, offset in ((0, 0.0), (1, 0.01), (2, 0.03)):
        for fold in (0, 1):
            make_run(tmp_path, "dense", fold=fold, seed=seed, offset=offset, spread=0, cases=4)
    make_run(tmp_path, "coarse_s2", offset=0.0, cases=4)
    found = seed_nulls(read_study([tmp_path]))
    assert [(n.arm, n.first, n.second) for n in found] == [("dense", 0, 1), ("dense", 0, 2), ("dense", 1, 2)]
    assert [n.summary.mean for n in found] == pytest.approx([-0.01, -0.03, -0.02], abs=1e-6)
    assert [(n.summary.cases, n.summary.runs) for n in found] == [(8, 2)] * 3


def test_the_committed_seeds_of_coarse_s2():
    found = {
        (n.first, n.second): n.summary
        for n in seed_nulls(read_study([RESULTS / "study_seeds"]))
        if n.arm == "coarse_s2"
    }
    assert len(found) == 3
    s = found[0, 2]
    assert (s.mean, s.low, s.high) == pytest.approx((0.0026, 0.0001, 0.0051), abs=5e-5)
    assert s.cases == 52
