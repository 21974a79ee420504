"""Run folders of made-up numbers whose differences are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ARMS = {"dense": 0.0, "coarse_s2": -0.02, "pointrend_s2": 0.001, "coarse_s4": -0.06, "pointrend_s4": -0.015}
COSTS = {"dense": 0.41, "coarse_s2": 0.20, "pointrend_s2": 0.22, "coarse_s4": 0.16, "pointrend_s4": 0.19}
NAMED = {"comparisons": ["pointrend_s2 - coarse_s2", "pointrend_s4 - coarse_s4", "pointrend_s2 - dense"]}
HEADER = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm,band_dice,truth_ml,thinness"


def write_run(root: Path, arm: str, *, fold=0, seed=0, cases=12, offset=None, study=None, spread=0.01) -> Path:
    """One run: structure `organ` near .9 and `vessel` near .7, each plus the arm's offset."""
    folder = root / arm / f"fold{fold}_seed{seed}"
    folder.mkdir(parents=True)
    offset = ARMS[arm] if offset is None else offset
    shared = np.random.default_rng(fold)
    own = np.random.default_rng([fold, seed, *arm.encode()])
    lines = [HEADER]
    versions = [("false", 0.02), ("true", 0.0)] if arm.startswith("pointrend") else [("false", 0.0)]
    for case in range(cases):
        difficulty = 0.03 * shared.normal(size=2)
        noise = spread * own.normal(size=2)
        for refined, loss in versions:
            for k, (structure, base) in enumerate((("organ", 0.9), ("vessel", 0.7))):
                dice = np.clip(base + offset - loss + difficulty[k] + noise[k], 0, 1)
                values = ",".join(
                    f"{v:.6f}"
                    for v in (dice, dice, 10 * (1 - dice), 2 * (1 - dice), dice, 2.0 - k + case / 9, 0.3 + 0.6 * k)
                )
                lines.append(f"{arm},{fold},{seed},case_{fold}_{case:02d},{structure},{refined},{values}")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    info = {
        "config_hash": f"{arm}{fold}{seed}",
        "data_hash": "d",
        "data_set": "Phantoms",
        "commit": "abc123",
        "python": "3.11.2",
        "packages": {"torch": "2.13.0"},
        "seconds_per_step": COSTS.get(arm, 0.3),
        "seconds_per_case": 0.5,
        "peak_memory_mib": 900.0,
        "parameters": 1_000_000,
        "multiply_adds": int(30e9 * COSTS.get(arm, 0.3)),
    }
    (folder / "run.json").write_text(json.dumps(info))
    config = {"name": root.name, "arm": arm, "data": {"root": "/home/someone/Phantoms"}}
    config |= {"metrics": {"tolerance_mm": 1.0}, "study": study or {}}
    (folder / "config.yaml").write_text(json.dumps(config))
    if len(versions) == 2:
        rows = ["case,structure,distance_upto_mm,margin_upto,fixed,broken,unchanged,wrong_before"]
        rows += [
            f"case_{fold}_00,{structure},{mm},{margin},{30 - 5 * i},{10 - 3 * j},100,{60 - 10 * j}"
            for structure in ("organ", "vessel", "all structures")
            for i, mm in enumerate(("1.000000", "2.000000", "inf"))
            for j, margin in enumerate(("0.250000", "0.500000", "inf"))
        ]
        (folder / "refinement.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """`write_run`, as a fixture."""
    return write_run


@pytest.fixture
def pair_folder(tmp_path: Path) -> Path:
    """Two arms on one fold: what is enough to lay a report out."""
    for arm in ("dense", "pointrend_s2"):
        write_run(tmp_path / "toy", arm, cases=4, study=NAMED)
    return tmp_path / "toy"


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five arms on two folds, not to be changed."""
    root = tmp_path_factory.mktemp("study") / "toy"
    for arm in ARMS:
        for fold in (0, 1):
            write_run(root, arm, fold=fold, study=NAMED)
    picture = root / "pointrend_s2" / "fold0_seed0" / "pictures" / "worst_case.png"
    picture.parent.mkdir()
    picture.write_bytes(b"not decoded here")
    return root
