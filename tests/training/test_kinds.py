"""Volumes of odd kinds from files to scores: trained for a few steps, predicted, evaluated, as a user would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from vnet.core.config import load_config
from vnet.data.dataset import open_dataset
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.inference.label_files import predict_files
from vnet.training.run import train_run

THICK = ["--network.strides", "[[1,2,2],[2,2,2]]", "--network.output_stride", "[1,2,2]"]
TILES = ["--training.patch", "[16,16,16]"]
KINDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "smaller than a patch": ({"size": (9, 10, 8)}, []),
    "larger than a patch": ({"size": (30, 36, 40)}, TILES),
    "thick slices, CT": (
        {"size": (10, 40, 36), "spacing_mm": (5.0, 0.7, 0.7), "modality": "CT", "orientations": ("LPS",)},
        [*THICK, "--training.patch", "[8,24,24]"],
    ),
    "permuted, the fourth oblique": ({"orientations": ("SRA", "PIR", "ASL")}, TILES),
    "three channels": ({"channels": 3}, []),
    "binary": ({"organs": 1, "vessels": False}, []),
    "24 classes": ({"size": (24, 26, 28), "organs": 22}, []),
    "an ignore label": ({"ignore": 0.6}, TILES),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_trained_predicted_and_scored(name: str, tiny: list[str], tmp_path: Path) -> None:
    wish, words = KINDS[name]
    kind = PhantomKind(**({"size": (20, 24, 28)} | wish))
    data = tmp_path / "data"
    write_phantoms(data, 5, seed=2, kind=kind)
    dataset = open_dataset(data)
    run = train_run(
        load_config([*tiny, "--data.root", str(data), "--arm", "pointrend_s2", "--training.steps", "2", *words])
    )
    table = pd.read_csv(run.folder / "cases.csv")
    # every structure is scored, and an ignore label is none
    assert list(table["structure"].unique()) == list(kind.structures[1:])
    assert table["dice"].dropna().between(0, 1).all()
    written = predict_files(run.folder, data / "imagesTr", tmp_path / "out")
    assert [path.name for path in written] == [case.images[0].name for case in dataset.cases]
    for path, case in zip(written, dataset.cases, strict=True):
        predicted, scan = nib.load(path), nib.load(case.images[0])
        assert predicted.shape == scan.shape[:3]
        np.testing.assert_allclose(predicted.affine, scan.affine, atol=1e-4)
        assert np.asarray(predicted.dataobj).max() < len(kind.structures)
