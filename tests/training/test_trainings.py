"""Volumes of odd kinds from files to scores: trained for a few steps, predicted, evaluated, as a user would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from tests.fixtures import RUN, run_vnet, write_volume
from vnet.core.config import load_config
from vnet.core.randomness import point_generators, sample_seed
from vnet.data.dataset import open_dataset
from vnet.data.folds import select_fold
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.inference.label_files import predict_files
from vnet.training.optimizer import learning_rate
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


def test_one_cycle_passes_its_three_corners() -> None:
    rates = [learning_rate(t, peak=3e-3, schedule="one_cycle") for t in (0.0, 0.3, 1.0, 2.0)]
    assert rates == pytest.approx([3e-3 / 25, 3e-3, 3e-7, 3e-7])


def test_one_cycle_is_half_way_at_the_middle_of_each_part() -> None:
    assert learning_rate(0.15, peak=1.0, schedule="one_cycle") == pytest.approx((1 / 25 + 1) / 2)
    assert learning_rate(0.65, peak=1.0, schedule="one_cycle") == pytest.approx((1 + 1e-4) / 2)


def test_poly() -> None:
    assert learning_rate(0.5, peak=2.0, schedule="poly") == pytest.approx(2 * 0.5**0.9)
    assert learning_rate(1.0, peak=2.0, schedule="poly") == 0


def test_every_seed_step_sample_and_purpose_has_its_own_stream() -> None:
    seeds = {sample_seed(a, b, c, d) for a in range(3) for b in range(4) for c in range(5) for d in range(2)}
    assert len(seeds) == 3 * 4 * 5 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_sample_draws_the_same_whoever_draws_it() -> None:
    whole = [torch.rand(3, generator=g) for g in point_generators(7, 11, range(4))]
    share = [torch.rand(3, generator=g) for g in point_generators(7, 11, range(2, 4))]
    torch.testing.assert_close(whole[2:], share, rtol=0, atol=0)


def renamed_copy(folder: str, names: dict[str, str], turned: str) -> None:
    """The data set with other case names, one case stored along other axes, and one new case."""
    shutil.copytree("data", folder)
    for kind in ("imagesTr", "labelsTr"):
        for old, new in names.items():
            Path(f"{folder}/{kind}/{old}.nii.gz").rename(f"{folder}/{kind}/{new}.nii.gz")
        path = Path(f"{folder}/{kind}/{turned}.nii.gz")
        image = nib.load(path).as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
        write_volume(path, np.asarray(image.dataobj), image.affine)
    label = np.asarray(nib.load(f"{folder}/labelsTr/{turned}.nii.gz").dataobj)
    write_volume(Path(f"{folder}/imagesTr/new.nii.gz"), label.astype(np.float32))
    write_volume(Path(f"{folder}/labelsTr/new.nii.gz"), label)
    cases = [*names.values(), "new"]
    text = json.loads(Path(f"{folder}/dataset.json").read_text())
    text["training"] = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in cases]
    Path(f"{folder}/dataset.json").write_text(json.dumps(text))


def test_cases_that_were_trained_on_are_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = select_fold(open_dataset("data"), 0)
    names = {name: f"other_{name}" for name in (*fold.train, *fold.val)}
    seen = sorted(f"other_{name}" for name in fold.train)
    renamed_copy("other", names, seen[0])
    code, out, err = run_vnet("evaluate", [str(RUN), "--data.root", "other"], capsys)
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert line == (
        f"warning: the run was trained on {len(seen)} of {len(names) + 1} cases (the same image): {', '.join(seen)}; "
        "their scores say nothing of new cases"
    )


def test_the_runs_own_fold_is_no_reason_for_a_warning(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_vnet("evaluate", [str(RUN)], capsys)
    assert code == 0
    assert "warning" not in out
