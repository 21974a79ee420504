"""The calibrated margin: by hand, and against asking the head everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.core.runs import open_run
from vnet.data.volumes import read_image
from vnet.inference import calibration
from vnet.inference.calibration import calibrated_margin, changed_margins, share_within
from vnet.inference.ensemble import largest_margin
from vnet.inference.predictor import Predictor
from vnet.model.checkpoints import load_model, read_checkpoint
from vnet.training.run import train_run

EVERYWHERE = ["--points.refine_fraction", "1", "--points.max_margin", "null"]


def test_the_margin_holds_99_of_100_changes() -> None:
    margins = np.random.default_rng(0).permutation(np.arange(1, 101)).astype(np.float32)
    assert calibrated_margin([margins[:30], margins[30:]]) == 100  # of 100 changes, 99 % are within the 100th at least
    assert calibrated_margin([np.arange(1, 201, dtype=np.float32)]) == 199
    assert share_within([margins], 99) == pytest.approx(0.99)
    assert share_within([margins[:0], margins], 40.5) == pytest.approx(0.4)


def test_without_a_change_nothing_is_asked() -> None:
    assert calibrated_margin([]) == calibrated_margin([np.zeros(0, np.float32)]) == 0
    assert share_within([], 1.0) is None


@pytest.fixture
def trained(tiny: list[str]) -> Path:
    words = ["--arm", "pointrend_s2", "--points.max_margin", "auto", "--points.refine_fraction", "1"]
    return train_run(load_config([*tiny, *words])).folder


def test_margins_are_those_of_the_labels_that_asking_everywhere_changes(trained: Path, phantoms: Path) -> None:
    run, config = open_run(trained)
    model = load_model(run, config, "last")
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    found = changed_margins(model.model, volume, model.preprocessing, config, torch.Generator())
    everywhere = Predictor(trained, overrides=EVERYWHERE).predict(volume)
    changed = everywhere.labels.ravel() != everywhere.unrefined.ravel()
    np.testing.assert_allclose(found, -everywhere.uncertainty[changed], atol=1e-4)
    assert len(found) > 50


def test_a_large_volume_is_asked_at_random_voxels(
    trained: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "VOXELS", 3000)
    run, config = open_run(trained)
    model = load_model(run, config, "last")
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    some = [changed_margins(model.model, volume, model.preprocessing, config, one) for one in generators]
    np.testing.assert_array_equal(some[0], some[1])
    assert len(some[0]) != len(some[2]) or (some[0] != some[2]).any()
    everywhere = Predictor(trained, overrides=EVERYWHERE).predict(volume)
    rate = (everywhere.labels != everywhere.unrefined).mean()
    assert len(some[0]) == pytest.approx(3000 * rate, rel=0.4)


def test_a_training_measures_the_margin_and_prediction_obeys_it(
    trained: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = json.loads((trained / "run.json").read_text())
    margin = info["max_margin"]
    assert read_checkpoint(trained / "checkpoints/last.ckpt")["max_margin"] == pytest.approx(margin, abs=1e-5)
    assert info["changes_within_margin_training"] >= 0.99
    assert 0.5 < info["changes_within_margin_validation"] <= 1
    predictor = Predictor(trained)
    asked = changed = held = 0
    for case in sorted((phantoms / "imagesTr").iterdir()):
        volume = read_image([case])
        auto = predictor.predict(volume)
        assert (-auto.uncertainty <= margin + 1e-4).all()
        everywhere = Predictor(trained, overrides=EVERYWHERE).predict(volume)
        changes = everywhere.labels != everywhere.unrefined
        asked += len(auto.index)
        changed += changes.sum()
        held += (auto.labels != auto.unrefined).sum()
    assert held >= 0.97 * changed
    assert asked < everywhere.labels.size * 6


def test_the_cap_still_holds(trained: Path, phantoms: Path) -> None:
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    capped = Predictor(trained, overrides=["--points.refine_fraction", "0.01"]).predict(volume)
    assert len(capped.index) == round(0.01 * capped.labels.size)


def test_several_models_take_the_largest_margin() -> None:
    class One:
        def __init__(self, margin: float | None, head: object = True) -> None:
            self.max_margin, self.head = margin, head

    auto, fixed = (load_config(["--points.max_margin", word]) for word in ("auto", "0.5"))
    assert largest_margin([One(1.0), One(3.0), One(None, head=None)], auto) == 3.0  # type: ignore[list-item]
    assert largest_margin([One(1.0), One(None)], auto) is None  # type: ignore[list-item]
    assert largest_margin([One(1.0)], fixed) == 0.5  # type: ignore[list-item]
    assert largest_margin([One(1.0)], load_config([])) is None  # type: ignore[list-item]


def test_a_margin_is_a_number_auto_or_null() -> None:
    assert load_config(["--points.max_margin", "auto"]).hash("d") != load_config([]).hash("d")
    with pytest.raises(InputError, match="points.max_margin must be .*, got often"):
        load_config(["--points.max_margin", "often"])
    with pytest.raises(InputError, match="points.max_margin must be 0 or more, auto, or null, got -1"):
        load_config(["--points.max_margin", "-1"])
