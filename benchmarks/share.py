"""What the share of voxels refined at prediction brings and costs, on a run that is trained already.

The run is `pointrend_s2` of configs/ablations.yaml; its validation fold is predicted anew for each share.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from vnet.cost import set_threads
from vnet.data.volumes import read_image, read_label
from vnet.errors import InputError
from vnet.metrics import case_metrics
from vnet.predictor import Predictor
from vnet.setting import read_setting

Row = dict[str, Any]
RUN = Path("runs/ablations/pointrend_s2/fold0_seed0")
SHARES = (0.0, 0.01, 0.03, 0.06, 0.12, 0.25, 1.0)


def score(share: float, cases: int | None) -> Row:
    """Means over the validation cases with `share` of the voxels refined."""
    predict = Predictor(RUN, overrides=["--points.test_share", str(share)])
    setting = read_setting(predict.config, progress=False)
    seconds, dice, hd95_mm = [], [], []
    for case in setting.cases(setting.fold.val)[:cases]:
        assert case.label is not None
        volume, truth = read_image(case.images), read_label(case.label).array
        start = time.perf_counter()
        labels = predict.predict(volume).labels
        seconds.append(time.perf_counter() - start)
        rows = case_metrics(labels, truth, predict.structures, volume.spacing_mm, 1.0, ignore=setting.dataset.ignore)
        dice.append(np.mean([row["dice"] for row in rows if row["dice"] is not None]))
        hd95_mm.append(np.mean([row["hd95_mm"] for row in rows if row["hd95_mm"] is not None]))
    return {
        "share": f"{share:g} of the voxels",
        "seconds": round(float(np.median(seconds)), 4),
        "dice": round(float(np.mean(dice)), 5),
        "hd95_mm": round(float(np.mean(hd95_mm)), 3),
        "cases": len(seconds),
    }


def run(quick: bool = False) -> list[Row]:
    """Rows of the table; `quick` predicts five cases."""
    if not (RUN / "checkpoints" / "last.ckpt").is_file():
        command = "python scripts/train.py --config configs/ablations.yaml --arm pointrend_s2 --data.root DATA/TASK"
        raise InputError(f"{RUN}: holds no checkpoint; run `{command}` first")
    set_threads(0)
    return [score(share, 5 if quick else None) for share in SHARES]
