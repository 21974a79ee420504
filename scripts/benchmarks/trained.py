"""Coarse logits of a trained run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vnet.data.prepared import prepare_data
from vnet.data.volumes import read_image
from vnet.inference.predictor import Predictor


def coarse_logits(run: Path) -> NDArray[np.float32]:
    """(1, K, d, h, w) logits of the run's network on the first case of its validation fold.

    Raises:
        InputError: not a run.
    """
    predictor = Predictor(run)
    prepared = prepare_data(predictor.config)
    case = prepared.cases(prepared.fold.val[:1])[0]
    return predictor.predict(read_image(case.images)).coarse[None].numpy()
