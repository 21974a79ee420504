"""Bundles: what they hold, the labels of their run, MONAI's own command and checks, and the model that comes along.

The tests marked `bundle` run MONAI's command in a process of its own, on turned and oblique images.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.fixtures import NAMES, RUN, read_volume, run_vnet, write_volume
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.data.dataset import open_dataset
from vnet.data.folds import all_folds
from vnet.data.volumes import read_image, read_label
from vnet.evaluation.metrics import dice_scores
from vnet.inference.monai_bundle import LabelInferer, VolumeReader, list_images
from vnet.inference.predictor import Predictor
from vnet.model.checkpoints import read_checkpoint, save_checkpoint
from vnet.report.bundle import SCHEMA, mean_dice, portable_config, write_bundle

ROOT = Path(__file__).parents[2]
FILES = ["configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt"]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rotation(degrees: float) -> np.ndarray:
    """(3, 3): about z, then as much about x."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def write_scans(folder: Path) -> list[str]:
    """The image of case a along other axes, oblique, with other spacings, and with a header in metres; their names."""
    voxels = read_volume("data/imagesTr/a.nii.gz")
    affine = np.diag([1.3, 0.9, 1.6, 1.0])
    write_volume(folder / "plain.nii.gz", voxels, affine)
    turned = affine[:, [2, 0, 1, 3]] * [-1, 1, -1, 1]
    write_volume(folder / "turned.nii.gz", voxels.transpose(2, 0, 1)[::-1, :, ::-1], turned)
    oblique = affine.copy()
    oblique[:3, :3], oblique[:3, 3] = rotation(20) @ affine[:3, :3], (5, -7, 11)
    write_volume(folder / "oblique.nii.gz", voxels, oblique)
    metres = nib.Nifti1Image(voxels, np.diag([*(np.diag(affine)[:3] / 1000), 1.0]))
    metres.header.set_xyzt_units("meter")
    metres.to_filename(folder / "metres.nii.gz")
    return ["metres", "oblique", "plain", "turned"]


@pytest.fixture
def bundle(world: Path) -> Path:
    """The bundle of the trained run of `world`."""
    return write_bundle(RUN, world / "bundle")


def test_a_bundle_holds_what_predicts_and_no_optimiser(bundle: Path) -> None:
    assert files(bundle) == FILES
    whole, kept = read_checkpoint(RUN / "checkpoints/last.ckpt"), read_checkpoint(bundle / "models/model.pt")
    assert set(whole) - set(kept) == {"optimizer", "progress", "config_hash", "training_images"}
    assert list(kept["model"]) == list(whole["model"])
    assert all(torch.equal(kept["model"][name], whole["model"][name]) for name in whole["model"])
    assert (kept["structures"], kept["in_channels"]) == (["background", "near", "far"], 1)
    text = "".join((bundle / name).read_text() for name in FILES[:3])
    assert str(Path.cwd()) not in text
    card = (bundle / "docs/README.md").read_text()
    assert "0 background, 1 near, 2 far. A V-Net, arm `pointrend_s2`, with a PointRend head." in card
    assert "| cases | fold 0: 4 trained on, 1 not seen |" in card
    assert "| training | 2 steps, seed 0, commit" in card
    means = mean_dice([{"case": "a", "refined": "true", "dice": text} for text in ("0.5", "0.7", "")])
    assert means == {True: pytest.approx(0.6)}
    assert re.search(r"Mean over the 1 cases not seen, .*: refined 0\.\d{4}, without refinement 0\.\d{4}\.", card)


def test_the_command_writes_it(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_vnet("export", [str(RUN), "bundle", "--half"], capsys)
    assert (code, err) == (0, "")
    assert out.startswith("wrote bundle (0.")
    assert files(world / "bundle") == FILES
    assert "in half precision" in (world / "bundle/docs/README.md").read_text()
    code, out, err = run_vnet("predict", ["bundle", "--input", "data/imagesTr", "--output", "out"], capsys)
    assert (code, err) == (0, "")
    assert [name for name in files(world / "out") if name.endswith(".nii.gz")] == [f"{name}.nii.gz" for name in NAMES]


def test_a_bundle_gives_the_labels_of_its_run(bundle: Path) -> None:
    write_scans(Path("scans"))
    for words in ([], ["--points.refine", "false"]):
        run, packed = Predictor(RUN, overrides=words), Predictor(bundle, overrides=words)
        for path in sorted(Path("scans").iterdir()):
            image = nib.load(path)
            labels = run(image.get_fdata(), image.affine)
            np.testing.assert_array_equal(packed(image.get_fdata(), image.affine), labels)
    assert packed.config.points.refine is False
    assert (packed.config.data.root, packed.config.device, packed.config.threads) == ("", "auto", 0)


def test_a_bundle_names_no_folder_of_the_machine() -> None:
    words = "--name x --run_root /a/r --data.root /a/d --data.cache /a/c --data.groups /a/who.csv"
    kept = portable_config(load_config([*words.split(), "--training.init_from", "/a/w.ckpt", "--seed", "3"]))
    assert (kept["seed"], kept["data"]["groups"], kept["data"]["fold"]) == (3, "who.csv", 0)
    assert "/a" not in json.dumps(kept)


def test_half_precision_rounds_each_weight(world: Path) -> None:
    folder = write_bundle(RUN, world / "half", half=True)
    whole = read_checkpoint(RUN / "checkpoints/last.ckpt")["model"]
    for name, value in read_checkpoint(folder / "models/model.pt")["model"].items():
        assert value.dtype == torch.float16, name
        torch.testing.assert_close(value.float(), whole[name], rtol=2**-11, atol=2**-25)
    model = Predictor(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    path = RUN / "checkpoints/last.ckpt"
    state = read_checkpoint(path)
    next(iter(state["model"].values())).view(-1)[0] = 65520.0  # rounds to infinity
    save_checkpoint(path, {key: value for key, value in state.items() if key != "format"})
    with pytest.raises(InputError, match=r"last.ckpt: network\..* beyond half precision; export without --half"):
        write_bundle(RUN, world / "other", half=True)
    assert not (world / "other").exists()


def test_what_cannot_be_exported_or_read_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="bundle: is there and not an empty folder; name another for the bundle"):
        write_bundle(RUN, bundle)
    with pytest.raises(InputError, match="bundle: a bundle holds one checkpoint; leave --checkpoint best out"):
        Predictor(bundle, checkpoint="best")
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    (bundle / "configs/metadata.json").write_text(json.dumps({**metadata, "vnet": None}))
    with pytest.raises(InputError, match="metadata.json: holds no config under vnet; export the bundle with"):
        Predictor(bundle)
    info = json.loads((RUN / "run.json").read_text())
    (RUN / "run.json").write_text(json.dumps({key: value for key, value in info.items() if key != "steps"}))
    with pytest.raises(InputError, match="its training has not ended; run the training command again"):
        write_bundle(RUN, "new")


# --- MONAI's side ----------------------------------------------------------------------------------------------------


def test_the_reader_gives_the_files_own_axes_by_our_rules(world: Path) -> None:
    rng = np.random.default_rng(0)
    channels = [rng.normal(size=(3, 4, 5)).astype(np.float32) for _ in range(2)]
    affine = np.diag([-0.002, 0.003, 0.004, 1.0])
    for number, voxels in enumerate(channels):
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("meter")
        image.to_filename(world / f"pair_000{number}.nii.gz")
    for path in (world / "data").rglob("*.nii.gz"):
        path.unlink()
    (item,) = list_images(str(world), 2)
    reader = VolumeReader()
    assert reader.verify_suffix(item["image"])
    assert not reader.verify_suffix("scan.mha")
    voxels, known = reader.get_data(reader.read(item["image"]))
    np.testing.assert_array_equal(voxels, np.stack(channels))
    np.testing.assert_allclose(known["affine"], np.diag([-2, 3, 4, 1]))
    assert list(known["spatial_shape"]) == [3, 4, 5]
    (world / "pair_0001.nii.gz").rename(world / "pair_0002.nii.gz")
    with pytest.raises(InputError, match="case pair consists of pair_0000.nii.gz, pair_0002.nii.gz; the network"):
        list_images(str(world), 2)


def test_the_inferer_labels_each_image_of_a_batch_by_its_own_affine(bundle: Path) -> None:
    predictor = Predictor(bundle)
    infer = LabelInferer(predictor)
    voxels = read_volume("data/imagesTr/a.nii.gz").astype(np.float32)
    affines = np.stack([np.eye(4), np.diag([-1.5, 1, 1.25, 1])])
    batch = MetaTensor(torch.from_numpy(np.stack([voxels, voxels[::-1]])[:, None]), meta={"affine": affines})
    batch.is_batch = True
    found = infer(batch, predictor.model)
    assert (found.dtype, found.shape, found.is_batch) == (torch.uint8, (2, 1, *voxels.shape), True)
    for image, affine, labels in zip((voxels, voxels[::-1]), affines, found.as_tensor(), strict=True):
        np.testing.assert_array_equal(labels[0], predictor(image, affine))
    with pytest.raises(ValueError, match="network must be predictor.model"):
        infer(batch, torch.nn.Identity())
    with pytest.raises(ValueError, match="inputs must be a MetaTensor, which has an affine, got Tensor"):
        infer(batch.as_tensor(), predictor.model)


# the mandatory keys of MONAI's specification of bundles, as its schema of 2024-07-25 lists them
MANDATORY = (
    "schema version monai_version pytorch_version numpy_version required_packages_version task description authors "
    "copyright network_data_format"
).split()
TENSOR = {"type": "object", "required": "type format num_channels spatial_shape dtype value_range".split()}
TENSOR["properties"] = {"value_range": {"type": "array", "items": {"type": "number"}}}
SIDES = {side: {"type": "object", "additionalProperties": TENSOR} for side in ("inputs", "outputs")}
RULES = {
    "type": "object",
    "required": MANDATORY,
    "properties": {
        **{key: {"type": "string"} for key in MANDATORY},
        "required_packages_version": {"type": "object"},
        "network_data_format": {"type": "object", "required": [*SIDES], "properties": SIDES},
    },
}
CHECKS = """
import sys
from monai.bundle import ConfigWorkflow, verify_metadata
bundle, images, schema = sys.argv[1:]
verify_metadata(meta_file=f"{bundle}/configs/metadata.json", filepath=schema)
workflow = ConfigWorkflow(
    f"{bundle}/configs/inference.json", workflow_type="infer", bundle_root=bundle, dataset_dir=images
)
workflow.initialize()
print("missing", workflow.check_properties())
print("reads", workflow.spatial_shape, "gives", list(workflow.channel_def.values()))
"""


def run_python(*words: str) -> str:
    """Stdout of this Python with `words`, with the packages of this checkout; it must succeed."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    env["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.bundle
def test_monai_runs_the_bundle_with_the_labels_of_predict(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = write_scans(Path("scans"))
    config = ["--config_file", "bundle/configs/inference.json", "--bundle_root", "bundle"]
    run_python("-m", "monai.bundle", "run", *config, "--dataset_dir", "scans", "--output_dir", "theirs")
    code, _, _ = run_vnet("predict", [str(RUN), "--input", "scans", "--output", "ours"], capsys)
    assert code == 0
    assert files(Path("theirs")) == [f"{name}_seg.nii.gz" for name in names]
    present = set()
    for name in names:
        theirs, ours = nib.load(f"theirs/{name}_seg.nii.gz"), nib.load(f"ours/{name}.nii.gz")
        voxels = np.asarray(ours.dataobj)
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), voxels)
        assert theirs.get_data_dtype() == np.uint8
        np.testing.assert_allclose(theirs.affine, read_image([f"scans/{name}.nii.gz"]).affine, atol=1e-5)
        present |= set(np.unique(voxels))
    assert len(present) > 1


@pytest.mark.bundle
def test_monai_finds_nothing_missing(bundle: Path) -> None:
    Path("schema.json").write_text(json.dumps(RULES))  # there already: MONAI does not fetch the one that is named
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["schema"] == SCHEMA
    out = run_python("-c", CHECKS, "bundle", "data/imagesTr", "schema.json")
    assert "missing []" in out
    assert "reads ['*', '*', '*'] gives ['background', 'near', 'far']" in out


# --- the model that comes along --------------------------------------------------------------------------------------

SHIPPED = ROOT / "models" / "hippocampus"


def test_the_shipped_model_is_small_and_holds_half_precision() -> None:
    assert files(SHIPPED) == FILES
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 7e6
    state = read_checkpoint(SHIPPED / "models/model.pt")
    assert {value.dtype for value in state["model"].values()} == {torch.float16}
    assert state["structures"] == ["background", "Anterior", "Posterior"]
    assert state["max_margin"] > 0
    card = (SHIPPED / "docs/README.md").read_text()
    for fact in ("CC-BY-SA 4.0", "Vanderbilt University Medical Center", "156 trained on, 52 not seen", "seed 0"):
        assert fact in card


def test_the_shipped_model_labels_without_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    voxels = np.random.default_rng(0).normal(size=(31, 45, 36)).astype(np.float32)
    write_volume(Path("scan.nii.gz"), voxels, np.diag([-1.0, 1, 1, 1]))
    words = ["--model", "hippocampus", "--input", "scan.nii.gz", "--output", "out"]
    for more in ([], ["--points.refine", "false"]):
        code, out, err = run_vnet("predict", [*words, *more], capsys)
        assert (code, err) == (0, "")
        assert out.endswith("wrote 1 file to out\n")
        labels = read_volume("out/scan.nii.gz")
        assert labels.shape == voxels.shape
        assert set(np.unique(labels)) <= {0, 1, 2}


@pytest.mark.slow
@pytest.mark.decathlon
def test_the_model_card_gives_the_dice_of_the_shipped_weights(hippocampus: Path) -> None:
    dataset = open_dataset(hippocampus)
    unseen = set(all_folds(dataset)[1].val)
    predictor = Predictor(SHIPPED)
    scores: dict[str, list[float]] = {"refined": [], "without refinement": []}
    for case in dataset.labelled:
        if case.name in unseen:
            image = read_image(case.images)
            prediction = predictor.predict(image)
            truth = read_label(case.label, image).array
            for name, labels in zip(scores, (prediction.labels, prediction.unrefined), strict=True):
                scores[name].append(float(dice_scores(labels, truth, 3).mean()))
    assert len(scores["refined"]) == 52
    card = (SHIPPED / "docs/README.md").read_text()
    page = (ROOT / "docs/prediction.md").read_text()
    for name, values in scores.items():
        shown = re.findall(rf"{name} (0\.\d{{4}})", card)
        assert shown
        assert float(shown[0]) == pytest.approx(np.mean(values), abs=2e-4)  # other processors round otherwise
        assert f"{shown[0][1:]}† {name}" in page
