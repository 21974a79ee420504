"""Volumes and numbers that break naive code: trained on and scored, or refused; nothing in between."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.errors.refusals import IMAGE, LABEL, poison
from tests.errors.world import SIZE, describe, read_volume, run_vnet, set_header, tree, write_volume
from vnet.model.checkpoints import read_checkpoint

TRAIN = "--config tiny.yaml --data.root data --name odd --training.validate_every 1".split()
RUN = Path("runs/odd/pointrend_s2/fold0_seed0")


def volumes(change: Callable[[np.ndarray], np.ndarray], folder: str = "imagesTr", names: str = "abcde") -> None:
    for name in names:
        path = Path(f"data/{folder}/{name}.nii.gz")
        write_volume(path, change(read_volume(str(path))))


def constant() -> None:
    volumes(lambda array: np.full_like(array, 7), names="ab")


def all_constant() -> None:
    volumes(lambda array: np.full_like(array, 7))


def one_slice() -> None:
    for folder in ("imagesTr", "labelsTr"):
        volumes(lambda array: array[:, :, 5:6], folder, "abc")


def empty_labels() -> None:
    volumes(np.zeros_like, "labelsTr", "abc")


def absent_class() -> None:
    """No validation case of the fold holds `far`, and only one training case does."""
    Path("data/splits.json").write_text(json.dumps({"folds": [{"train": ["a", "b", "c"], "val": ["d", "e"]}]}))
    volumes(lambda array: np.where(array == 2, 0, array).astype(np.uint8), "labelsTr", "bcde")


def larger_than_the_patch() -> None:
    for folder in ("imagesTr", "labelsTr"):
        volumes(lambda array: np.tile(array, (3, 2, 1)), folder, "ab")


def a_voxel() -> None:
    for folder in ("imagesTr", "labelsTr"):
        volumes(lambda array: array[4:5, 4:5, 4:5], folder, "ab")


def huge() -> None:
    volumes(lambda array: array * np.float32(1e33))


def minute() -> None:
    volumes(lambda array: array * np.float32(1e-35))


def one_huge_voxel() -> None:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[0, 0, 0] = 3e38
        return array

    volumes(change)


def hounsfield() -> None:
    describe(modality={"0": "CT"})
    volumes(lambda array: (array - 1000).astype(np.int16))


def constant_hounsfield() -> None:
    describe(modality={"0": "CT"})
    all_constant()


def negative_spacing() -> None:
    """As files stored LPS have it: axes that run the other way."""
    for folder in ("imagesTr", "labelsTr"):
        for name in "ab":
            path = f"data/{folder}/{name}.nii.gz"
            set_header(path, srow_x=[-1, 0, 0, 0], srow_y=[0, -2, 0, 0])


ODD = [constant, all_constant, one_slice, empty_labels, absent_class, larger_than_the_patch, a_voxel, huge, minute]
ODD += [one_huge_voxel, hounsfield, constant_hounsfield, negative_spacing]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
def test_odd_volumes_are_trained_on_and_scored(odd, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd()
    code, _, err = run_vnet("train", [*TRAIN, "--arm", "pointrend_s2"], capsys)
    assert (code, err) == (0, "")
    state = read_checkpoint(RUN / "checkpoints/last.ckpt")
    assert state["progress"]["bad_steps"] == 0
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    with (RUN / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["structure"] for row in rows} == {"near", "far"}
    scores = [float(row["dice"]) for row in rows if row["dice"]]
    assert all(0 <= score <= 1 for score in scores)
    assert all(math.isfinite(float(row["hd95_mm"])) for row in rows if row["hd95_mm"])


def test_a_class_absent_from_the_fold_is_blank_and_not_1(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blank where neither truth nor prediction has it, 0 where it is hallucinated."""
    absent_class()
    assert run_vnet("train", [*TRAIN, "--arm", "pointrend_s2"], capsys)[0] == 0
    with (RUN / "cases.csv").open() as file:
        far = [row for row in csv.DictReader(file) if row["structure"] == "far"]
    assert far
    assert {row["dice"] for row in far} <= {"", "0.000000"}


def test_the_scale_of_the_intensities_does_not_matter(world: Path) -> None:
    from vnet.data.preprocessing import moments

    array = read_volume(IMAGE)
    mean, std = moments(array)
    for scale in (1e33, 1e-35):
        assert moments(array * np.float32(scale)) == pytest.approx((mean * scale, std * scale), rel=1e-4)


def test_too_many_steps_that_are_not_finite(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    words = [*TRAIN, "--training.steps", "4", "--training.max_bad_steps", "2", "--training.validate_every", "0"]
    code, _, err = run_vnet("train", [*words, "--arm", "pointrend_s2"], capsys)
    assert code == 3
    wanted = (
        rf"error: {RUN}: 3 steps with a non-finite loss or gradient, the last at step 2 with cases \w, \w "
        r"\(dice \S+, cross_entropy \S+, point \S+, point_dice \S+\); lower training.learning_rate, .*\n"
    )
    assert re.fullmatch(wanted, err), err
    state = read_checkpoint(RUN / "checkpoints/last.ckpt")
    assert (state["progress"]["step"], state["progress"]["bad_steps"]) == (2, 2)
    monkeypatch.undo()
    monkeypatch.chdir(world)
    code, _, err = run_vnet("train", [*words, "--arm", "pointrend_s2"], capsys)
    assert (code, err) == (0, "")


def test_a_learning_rate_that_explodes_is_stopped_and_told(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TRAIN, "--arm", "dense", "--training.learning_rate", "1e38", "--training.steps", "30"]
    words += ["--training.max_bad_steps", "3", "--training.validate_every", "0"]
    code, _, err = run_vnet("train", words, capsys)
    assert code == 3
    assert err.count("\n") == 1
    assert "4 steps with a non-finite loss or gradient" in err


def test_refusing_leaves_what_was_there(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault in a training is told before the run's folder is touched."""
    write_volume(Path(LABEL), np.full(SIZE, 9, np.uint8))
    before = tree(world / "runs/tiny")
    words = ["--config", "tiny.yaml", "--data.root", "data", "--arm", "pointrend_s2"]
    assert run_vnet("train", words, capsys)[0] == 2
    assert tree(world / "runs/tiny") == before
