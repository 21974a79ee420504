"""Volumes of odd kinds from files to scores: trained for a few steps, predicted, evaluated, as a user would."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from tests.fixtures import NAMES, RUN, run_vnet, write_run, write_volume
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.core.randomness import point_generators, sample_seed
from vnet.data.dataset import open_dataset
from vnet.data.folds import select_fold
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.evaluation.predictions import Predictions, complete_folds
from vnet.evaluation.study_tables import read_study
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


def compared(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[pd.DataFrame, str]:
    """(differences.csv, stdout) of `vnet compare runs/tiny` with further words."""
    code, out, err = run_vnet("compare", ["runs/tiny", "--output", "report", *words], capsys)
    assert (code, err) == (0, "")
    return pd.read_csv("report/differences.csv").set_index(["comparison", "structure", "metric"]), out


def test_label_files_are_an_arm_with_the_scores_of_the_run_that_wrote_them(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_files(RUN, "data/imagesTr", "out")
    shutil.copytree("data/labelsTr", "true")
    costs = {"seconds": 120.0, "steps": 40}
    Path("out/run.json").write_text(json.dumps(costs))
    found, out = compared(["--predictions", "other", "out", "--predictions", "perfect", "true"], capsys)
    case = str(pd.read_csv(RUN / "cases.csv")["case"][0])
    others = ", ".join(name for name in NAMES if name != case)
    assert f"other: 1 label files of out, fold 0; 4 other files are not used: {others}." in out
    own = found.loc["other - pointrend_s2"]
    assert len(own) >= 12
    assert (own["mean"].abs() < 1e-6).all()  # the same labels, by the same metrics; tables hold six decimals
    perfect = found.loc["perfect - pointrend_s2"]
    assert perfect.loc[("mean", "dice"), "first_mean"] == 1
    assert perfect.loc[("near", "hd95_mm"), "first_mean"] == 0
    assert perfect.loc[("near", "dice"), "second_mean"] == own.loc[("near", "dice"), "second_mean"] < 1
    price = pd.read_csv("report/costs.csv").set_index("arm")
    assert price.loc["other", "s of training"].startswith("120.000")
    assert "Runs not there yet" not in out or "other" not in out.split("Runs not there yet")[1].splitlines()[0]


def shifted(path: Path) -> None:
    label = nib.load(path)
    nib.Nifti1Image(np.asarray(label.dataobj), label.affine + np.eye(4, k=3), dtype=np.uint8).to_filename(path)


def relabelled(path: Path) -> None:
    label = nib.load(path)
    nib.Nifti1Image(np.full(label.shape, 7, np.uint8), label.affine, dtype=np.uint8).to_filename(path)


def cropped(path: Path) -> None:
    write_volume(path, np.zeros((9, 10, 11), np.uint8))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shifted, "{case}.nii.gz: affine differs from that of its image, corners lie 1 mm apart; resample the label"),
        (cropped, r"{case}.nii.gz: .*resample the label to the image's grid"),
        (relabelled, "{case}.nii.gz: holds the label 7, the data set has 0 to 2; write the labels of dataset.json"),
        (Path.unlink, "other: holds .*, no case of the study; name the files {case}.nii.gz and so on"),
        (lambda path: path.write_bytes(b"no volume"), "{case}.nii.gz: "),
        (lambda path: shutil.copy(path, path.with_name(path.name.removesuffix(".gz"))), "of one case; keep one"),
    ],
    ids=["elsewhere", "smaller", "foreign label", "missing", "damaged", "twice"],
)
def test_label_files_that_do_not_fit_are_named(
    harm: Any, message: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("data/labelsTr", "other")
    case = str(pd.read_csv(RUN / "cases.csv")["case"][0])
    harm(Path(f"other/{case}.nii.gz"))
    code, _, err = run_vnet("compare", ["runs/tiny", "--predictions", "other", "other"], capsys)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(message.format(case=case), err), err


def test_predictions_need_a_new_name_a_folder_and_the_data_of_the_study(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*words: str) -> str:
        code, _, err = run_vnet("compare", ["runs/tiny", "--predictions", *words], capsys)
        assert code == 2
        return err

    assert "must be a name that no arm of the study has" in refusal("pointrend_s2", "data/labelsTr")
    assert "nowhere is no folder; name one that holds CASE.nii.gz" in refusal("other", "nowhere")
    case = str(pd.read_csv(RUN / "cases.csv")["case"][0])
    shutil.copytree("data", "changed")
    label = nib.load(f"changed/labelsTr/{case}.nii.gz")
    voxels = np.asarray(label.dataobj).copy()
    voxels[voxels == 1] = 2
    nib.Nifti1Image(voxels, label.affine, dtype=np.uint8).to_filename(f"changed/labelsTr/{case}.nii.gz")
    assert "near of " in refusal("other", "data/labelsTr", "--data", "changed")
    shutil.rmtree("data")
    assert "name the study's data set with --data FOLDER" in refusal("other", "changed/labelsTr")


def test_a_fold_must_be_predicted_whole(tmp_path: Path) -> None:
    for fold in (0, 1):
        write_run(tmp_path / "s", "dense", fold=fold, cases=3)
    study = read_study([tmp_path / "s"])
    files = {f"case_1_{n:02d}": tmp_path for n in range(3)}
    folder = Predictions("other", Path("labels"))
    assert complete_folds(study, files, folder) == {"1": ["case_1_00", "case_1_01", "case_1_02"]}
    with pytest.raises(
        InputError, match="labels: lacks 2 of the 3 cases of fold 0: case_0_01, case_0_02; predict them"
    ):
        complete_folds(study, files | {"case_0_00": tmp_path}, folder)
