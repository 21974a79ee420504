"""Labels equal those of nnU-Net's own export and predictor, for every resampling that nnU-Net plans."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch

from tests.docs.pages import ROOT, tables
from tests.fixtures import run_vnet
from tests.pointrend.integrations.test_nnunet_trainer import LABELS, read_labels, write_images, write_model

pytestmark = [
    pytest.mark.nnunet,
    # acvl_utils and batchgenerators, on import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]
# nnU-Net and what it imports, while it runs
while_running = pytest.mark.filterwarnings("ignore:.*:UserWarning")
CPU = torch.device("cpu")
ALONE = "-npp 0 -nps 0 --disable_progress_bar -device cpu".split()
ISOTROPIC, THICK = (1.0, 0.9, 0.8), (5.0, 0.7, 0.8)


def case(spacing, planned, source, target, *, kind="default", regions=False, labels=4, **keywords):
    """Everything nnU-Net hands to its export, reduced to what it reads; the file's axes are (x, z, y)."""
    from nnunetv2.preprocessing.resampling import default_resampling, resample_torch

    functions = {
        "default": (default_resampling.resample_data_or_seg_to_shape, {"is_seg": False, "order": 1, "order_z": 0}),
        "torch": (resample_torch.resample_torch_fornnunet, {"is_seg": False}),
    }
    function, options = functions[kind]
    forward, backward = [1, 2, 0], [2, 0, 1]
    seen = {}
    for axis, value in zip(forward, spacing, strict=True):
        seen[axis] = value
    plans = SimpleNamespace(transpose_forward=forward, transpose_backward=backward)
    configuration = SimpleNamespace(
        spacing=planned,
        resampling_fn_probabilities=partial(function, **(options | {"force_separate_z": None} | keywords)),
    )
    box = [[2, 2 + target[0]], [0, target[1]], [1, 1 + target[2]]]
    properties = {
        "spacing": [seen[axis] for axis in range(3)],
        "shape_after_cropping_and_before_resampling": target,
        "shape_before_cropping": tuple(n + 4 for n in target),
        "bbox_used_for_cropping": box,
    }
    manager = label_manager(labels, regions)
    logits = np.random.default_rng(0).normal(size=(labels, *source)).astype(np.float32)
    return logits, plans, configuration, manager, properties


def label_manager(labels: int, regions: bool):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    names = {"background": 0} | {f"organ {i}": i for i in range(1, labels)}
    if not regions:
        return LabelManager(names, None)
    return LabelManager({"background": 0, "whole": (1, 2), "core": (2,)}, [1, 2])


def both(logits, *rest):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    from pointrend.integrations.nnunet import labels_on_native_grid

    expected = convert_predicted_logits_to_segmentation_with_correct_shape(logits.copy(), *rest, num_threads_torch=1)
    return labels_on_native_grid(logits, *rest, threads=1), expected


CASES = {
    "same grid": (ISOTROPIC, ISOTROPIC, (6, 7, 8), (6, 7, 8)),
    "finer": ((0.5, 0.45, 0.4), ISOTROPIC, (6, 7, 8), (13, 15, 17)),
    "coarser": ((2.0, 1.9, 1.7), ISOTROPIC, (9, 10, 11), (5, 5, 6)),
    "thick slices, same number": (THICK, (5.0, 1.2, 1.2), (5, 8, 9), (5, 14, 13)),
    "thick slices, other number": (THICK, (3.0, 0.6, 0.6), (9, 8, 9), (5, 14, 13)),
    "thick along the last axis": ((0.7, 0.8, 5.0), (1.0, 1.0, 6.0), (7, 8, 5), (11, 10, 7)),
    "thick along the middle axis": ((0.7, 5.0, 0.8), (1.0, 6.0, 1.0), (7, 5, 8), (11, 7, 10)),
    "planned in 2D": (THICK, (1.2, 1.2), (5, 8, 9), (5, 14, 13)),
}


@pytest.mark.parametrize("kind", ["default", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_labels_equal_nnunets(kind, name):
    labels, expected = both(*case(*CASES[name], kind=kind))
    assert labels.dtype == expected.dtype
    assert labels.shape == expected.shape
    np.testing.assert_array_equal(labels, expected)


def test_a_tensor_and_other_settings_of_the_slices():
    logits, *rest = case(*CASES["thick slices, other number"])
    labels, expected = both(torch.from_numpy(logits).clone().numpy(), *rest)
    from pointrend.integrations.nnunet import labels_on_native_grid

    np.testing.assert_array_equal(labels_on_native_grid(torch.from_numpy(logits), *rest), expected)
    np.testing.assert_array_equal(labels, expected)
    for keywords in ({"order_z": 1}, {"force_separate_z": False}, {"separate_z_anisotropy_threshold": 100}):
        np.testing.assert_array_equal(*both(*case(*CASES["thick slices, other number"], **keywords)))


def test_many_labels_are_sixteen_bit():
    labels, expected = both(*case(*CASES["finer"], labels=300))
    assert labels.dtype == expected.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected)


def refusal(message: str):
    # one line: the whole message has no line break
    return pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z")


def test_what_cannot_be_rendered_is_refused_in_one_line():
    from pointrend.integrations.nnunet import labels_on_native_grid

    with refusal(r"the model predicts regions \(whole, core\), which overlap and have no single best class"):
        labels_on_native_grid(*case(*CASES["finer"], regions=True))
    with refusal("must be linear in plane, got resample_data_or_seg_to_shape with order=3"):
        labels_on_native_grid(*case(*CASES["finer"], order=3))
    logits, plans, configuration, manager, properties = case(*CASES["finer"])
    configuration.resampling_fn_probabilities = np.resize
    with refusal("must be one of nnU-Net's linear ones, got resize"):
        labels_on_native_grid(logits, plans, configuration, manager, properties)


# ---- `vnet nnunet predict` and `Predictor`: the same files in, the same labels out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("nnunet") / "images")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds."""
    return write_model(tmp_path_factory.mktemp("nnunet") / "model", folds=2)


def theirs(model: Path, folds: tuple[int, ...] = (0,), **options: Any) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    return predictor


def ours(model: Path, folds: tuple[int, ...] = (0,), **options: Any) -> Any:
    from pointrend.integrations.nnunet import Predictor

    predictor = Predictor(device=CPU, allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    return predictor


def in_float32(predictor: Any) -> Any:
    """The predictor with logits in single precision, so that no two classes are rounded to one value."""
    plain = predictor.predict_logits_from_preprocessed_data
    predictor.predict_logits_from_preprocessed_data = lambda data: plain(data).float()
    return predictor


def only_at_ties(predictor: Any, labels: np.ndarray, expected: np.ndarray, image: Path) -> bool:
    """Whether two labellings differ only where nnU-Net's resampled half-precision logits of both classes are equal."""
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    parts = (predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json)
    data, _, properties = preprocessor.run_case([str(image)], None, *parts)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    order = predictor.plans_manager.transpose_forward
    spacing = [properties["spacing"][axis] for axis in order]
    size = properties["shape_after_cropping_and_before_resampling"]
    dense = np.asarray(
        predictor.configuration_manager.resampling_fn_probabilities(
            logits, size, predictor.configuration_manager.spacing, spacing
        )
    )
    box = tuple(slice(*edge) for edge in properties["bbox_used_for_cropping"])
    one, other = (array.transpose(order)[box] for array in (labels, expected))
    where = np.nonzero(one != other)
    return bool(np.all(dense[one[where], *where] == dense[other[where], *where]))


@while_running
@pytest.mark.parametrize("kind", ["default", "torch"])
def test_labels_of_a_folder_are_nnunets(kind: str, images: Path, tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "model", kind=kind)
    words = ["predict", "-m", str(model), "-i", str(images), "-o", str(tmp_path / "ours"), *ALONE]
    code, _, err = run_vnet("nnunet", words, capsys)
    assert (code, err) == (0, "")
    (tmp_path / "theirs").mkdir()
    theirs(model).predict_from_files_sequential(str(images), str(tmp_path / "theirs"))
    differing = 0
    for name in "ab":
        files = [tmp_path / side / f"{name}.nii.gz" for side in ("ours", "theirs")]
        headers = [SimpleITK.ReadImage(str(file)) for file in files]
        for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelIDTypeAsString"):
            assert getattr(headers[0], geometry)() == getattr(headers[1], geometry)()
        labels, expected = map(read_labels, files)
        assert len(np.unique(labels)) == 3
        assert only_at_ties(theirs(model), labels, expected, images / f"{name}_0000.nii.gz")
        differing += int((labels != expected).sum())
    assert differing < 0.002 * 2 * labels.size


@while_running
@pytest.mark.parametrize(
    ("folds", "changes", "options"),
    [
        ((0, 1), {}, {}),
        ((1,), {}, {"use_mirroring": False}),
        ((0,), {"spacing": [5.0, 1.2, 1.2]}, {"tile_step_size": 0.7}),
    ],
    ids=["folds", "no mirroring", "thick slices"],
)
def test_float32_logits_give_the_same_labels(
    folds: tuple[int, ...], changes: dict[str, Any], options: dict[str, Any], images: Path, model: Path, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", **changes) if changes else model
    for side, predictor in (("ours", ours), ("theirs", theirs)):
        (tmp_path / side).mkdir()
        in_float32(predictor(folder, folds, **options)).predict_from_files_sequential(str(images), str(tmp_path / side))
    for name in "ab":
        labels, expected = (read_labels(tmp_path / side / f"{name}.nii.gz") for side in ("ours", "theirs"))
        assert len(np.unique(labels)) > 1
        np.testing.assert_array_equal(labels, expected)


@while_running
def test_a_cascade_reads_the_labels_of_its_first_stage(images: Path, tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "model", previous_stage="3d_lowres")
    words = ["predict", "-m", str(model), "-i", str(images), "-o", str(tmp_path / "ours"), *ALONE]
    code, _, err = run_vnet("nnunet", words, capsys)
    assert code == 2
    assert "second stage of a cascade; name the labels of 3d_lowres with -prev_stage_predictions" in err
    previous = tmp_path / "previous"
    previous.mkdir()
    for name in "ab":
        image = SimpleITK.ReadImage(str(images / f"{name}_0000.nii.gz"))
        SimpleITK.WriteImage(SimpleITK.Cast(image > 0, SimpleITK.sitkUInt8), str(previous / f"{name}.nii.gz"))
    for side, predictor in (("ours", ours), ("theirs", theirs)):
        (tmp_path / side).mkdir(exist_ok=True)
        in_float32(predictor(model)).predict_from_files_sequential(
            str(images), str(tmp_path / side), folder_with_segs_from_prev_stage=str(previous)
        )
    for name in "ab":
        labels, expected = (read_labels(tmp_path / side / f"{name}.nii.gz") for side in ("ours", "theirs"))
        np.testing.assert_array_equal(labels, expected)
    code, _, err = run_vnet("nnunet", [*words, "-prev_stage_predictions", str(previous)], capsys)
    assert (code, err) == (0, "")


@while_running
@pytest.mark.slow
def test_processes_and_threads_give_the_same_files(images: Path, model: Path, tmp_path: Path, capsys) -> None:
    written = {}
    for processes in ("0", "2"):
        folder = tmp_path / processes
        words = ["predict", "-m", str(model), "-i", str(images), "-o", str(folder), "-device", "cpu"]
        code, _, _ = run_vnet("nnunet", [*words, "-f", "0", "-npp", processes, "-nps", processes], capsys)
        assert code == 0
        written[processes] = {path.name: read_labels(path).tobytes() for path in folder.glob("*.nii.gz")}
    assert len(written["0"]) == 2
    assert written["0"] == written["2"]


@while_running
def test_an_array_is_labelled_in_memory(model: Path) -> None:
    image = np.random.default_rng(0).normal(size=(1, 18, 20, 22)).astype(np.float32)
    properties = {"spacing": [1.0, 0.9, 1.1]}
    labels = in_float32(ours(model)).predict_single_npy_array(image, dict(properties))
    expected = in_float32(theirs(model)).predict_single_npy_array(image, dict(properties))
    assert labels.shape == (18, 20, 22)
    np.testing.assert_array_equal(labels, expected)


@while_running
def test_predicted_files_are_kept_when_a_prediction_continues(
    images: Path, model: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "a.nii.gz").write_text("mine")
    words = ["predict", "-m", str(model), "-i", str(images), "-o", str(tmp_path), "-f", "1", *ALONE]
    assert run_vnet("nnunet", [*words, "--continue_prediction"], capsys)[0] == 0
    assert (tmp_path / "a.nii.gz").read_text() == "mine"
    assert (tmp_path / "b.nii.gz").is_file()


@while_running
def test_what_cannot_be_predicted_is_refused_in_one_line(images: Path, model: Path, tmp_path: Path, capsys) -> None:
    regions = write_model(tmp_path / "regions", labels={"background": 0, "whole": [1, 2], "core": [2]})
    cubic = write_model(tmp_path / "cubic")
    plans = json.loads((cubic / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["resampling_fn_probabilities_kwargs"]["order"] = 3
    (cubic / "plans.json").write_text(json.dumps(plans))
    inputs, out = ["-i", str(images)], ["-o", str(tmp_path / "out")]
    cases = [
        (["-m", str(regions), *inputs, *out], "the model predicts regions (whole, core), which overlap"),
        (["-m", str(cubic), *inputs, *out], "must be linear in plane, got resample_data_or_seg_to_shape with order=3"),
        (["-m", str(images), *inputs, *out], "no plans.json there; name the folder that holds it and fold_0"),
        (["-m", str(model), "-f", "7", *inputs, *out], "no checkpoint_final.pth of fold 7; there are 0, 1"),
        (["-m", str(model), "-chk", "x.pth", *inputs, *out], "no x.pth of fold 0; there is none"),
        (["-m", str(model), "-i", str(model), *out], "no image *_0000.nii.gz there"),
        (["-m", str(model), *inputs, "-o", str(images)], "is the folder of -i"),
        (["-m", str(model), *inputs, "-o", str(model)], "is the folder of -m"),
        (["-m", str(model), *inputs, *out, "-step_size", "0"], "-step_size must lie in (0, 1], got 0.0"),
    ]
    if not torch.cuda.is_available():
        cases.append((["-m", str(model), *inputs, *out, "-device", "cuda"], "torch finds no CUDA GPU here"))
    for words, message in cases:
        code, _, err = run_vnet("nnunet", ["predict", *ALONE[:5], *words], capsys)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="probabilities need the dense tensor of classes x voxels"):
        ours(model).predict_from_files(str(images), str(tmp_path / "kept"), save_probabilities=True)


@while_running
def test_labels_have_the_names_that_the_model_was_trained_with(images: Path, model: Path, tmp_path: Path) -> None:
    ours(model).predict_from_files_sequential(str(images), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"] == LABELS


def test_the_tables_of_the_docs_are_those_of_the_benchmark() -> None:
    measured = pd.read_csv(ROOT / "results/benchmarks/nnunet_export.csv").set_index("case")
    found = {table.comment: table for table in tables((ROOT / "docs/prediction.md").read_text())}
    for unit, digits in (("s", 1), ("mib", 0)):
        sides = [(f"{side}_{n}_{unit}", f"ours_{n}_{unit}") for side in ("default", "torch") for n in (1, 2)]
        word = {"s": "s", "mib": "MiB"}[unit]
        for case, *shown in found[f"nnunet_export {unit}"].rows:
            row = measured.loc[case]
            expected = [f"{row[side]:.{digits}f} {word} ({row[side] / row[own]:.0f})" for side, own in sides]
            if row["nnunet_fits"] == "no":
                expected = ["does not fit"] * len(sides)
            assert shown == [*expected, *(f"{row[own]:.{2 * digits}f} {word}" for _, own in sides[:2])]
