"""nnU-Net beside a study: what it is given, and what is read from its log; a training of four steps."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.beside_nnunet import collect, read_log, write_raw_data, write_splits
from vnet.core.errors import InputError
from vnet.data.dataset import open_dataset
from vnet.data.folds import Fold
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.data.volumes import read_image, read_label

ROOT = Path(__file__).parents[2]
TWO_SHORT_EPOCHS = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
class TwoShortEpochs(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1
"""
LOG = """
#######################################################################
2026-11-27 10:00:00.000001: do_dummy_2d_data_aug: False
2026-11-27 10:00:01.500000: Epoch 0
2026-11-27 10:00:01.500001: Current learning rate: 0.01
2026-11-27 10:10:01.500000: train_loss -0.1
2026-11-27 10:10:02: Epoch time: 600.25 s
2026-11-27 10:10:03.000000: Epoch 1
2026-11-27 10:15:03.000000: Epoch time: 300.5 s
2026-11-27 11:00:03.000000: Epoch 1
2026-11-27 11:10:03.000000: Epoch time: 580.0 s
2026-11-27 11:10:04.000000: Training done.
2026-11-27 11:10:10.000000: predicting case_1
2026-11-27 11:10:15.000000: predicting case_2
2026-11-27 11:10:24.000000: Validation complete
"""


def test_an_epoch_made_again_after_a_stop_counts_once() -> None:
    log = read_log(LOG)
    assert log == (2, 1180.25, 14.0)


def test_a_log_without_a_prediction_is_refused() -> None:
    with pytest.raises(InputError, match="tells no epoch and no prediction"):
        read_log(LOG.split("Training done")[0])


def test_raw_data_are_the_labelled_cases_in_nnunets_layout(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 3, seed=0)
    dataset = open_dataset(tmp_path / "data")
    for _ in range(2):  # a second start finds everything there
        write_raw_data(dataset, tmp_path / "raw")
    theirs = open_dataset(tmp_path / "raw")
    assert theirs.structures == dataset.structures
    assert theirs.modalities == dataset.modalities
    labelled = [case for case in dataset.cases if case.label is not None]
    assert [case.name for case in theirs.cases] == [case.name for case in labelled]
    for case, own in zip(theirs.cases, labelled, strict=True):
        assert [path.resolve() for path in case.files] == [path.resolve() for path in own.files]
    text = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert text["labels"]["background"] == 0
    assert text["numTraining"] == 3


def test_a_file_of_another_ending_is_refused(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 2, seed=0)
    label = next((tmp_path / "data" / "labelsTr").iterdir())
    plain = label.with_name(label.name.removesuffix(".gz"))
    plain.write_bytes(gzip.decompress(label.read_bytes()))
    text = tmp_path / "data" / "dataset.json"
    text.write_text(text.read_text().replace(f"labelsTr/{label.name}", f"labelsTr/{plain.name}"))
    with pytest.raises(InputError, match=f"{plain.name}: nnU-Net wants one ending for all files, .nii.gz; compress it"):
        write_raw_data(open_dataset(tmp_path / "data"), tmp_path / "raw")


def test_folds_keep_their_numbers(tmp_path: Path) -> None:
    write_splits([Fold(("b", "c"), ("a",)), Fold(("a", "c"), ("b",))], tmp_path / "splits_final.json")
    assert json.loads((tmp_path / "splits_final.json").read_text()) == [
        {"train": ["b", "c"], "val": ["a"]},
        {"train": ["a", "c"], "val": ["b"]},
    ]


def test_labels_of_the_validation_cases_and_their_seconds_are_collected(tmp_path: Path) -> None:
    for name in ("case_1", "case_2", "other"):
        (tmp_path / "fold_1" / "validation").mkdir(parents=True, exist_ok=True)
        (tmp_path / "fold_1" / "validation" / f"{name}.nii.gz").write_text(name)
    first, second = LOG.split("2026-11-27 11:00:03.000000: Epoch 1")
    (tmp_path / "fold_1" / "training_log_2026_11_27_10.txt").write_text(first)
    (tmp_path / "fold_1" / "training_log_2026_11_27_11.txt").write_text("2026-11-27 11:00:03.0: Epoch 1" + second)
    collect(tmp_path / "fold_1", Fold(("x",), ("case_1", "case_2")), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case_1.nii.gz",
        "case_2.nii.gz",
        "run.json",
    ]
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert facts == {"steps": 500, "seconds": 1180.2, "seconds_per_step": 2.3605, "seconds_per_case": 7.0}


@pytest.mark.nnunet
def test_nnunets_trainers_have_the_steps_that_are_counted() -> None:
    trainers = pytest.importorskip("nnunetv2.training.nnUNetTrainer", reason="needs the nnunet extra")
    text = (Path(trainers.__path__[0]) / "nnUNetTrainer.py").read_text()
    assert re.search(r"self\.num_iterations_per_epoch = 250\b", text)


@pytest.mark.nnunet
@pytest.mark.detection  # nnU-Net's search for trainers imports torchvision
@pytest.mark.slow
def test_a_fold_is_trained_once_and_its_labels_lie_on_the_images_grids(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 6, seed=1, kind=PhantomKind(size=(24, 28, 32)))
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "short.py").write_text(TWO_SHORT_EPOCHS)
    script = [sys.executable, str(ROOT / "scripts" / "beside_nnunet.py"), "--config", "quickstart"]
    words = "--data.root data --data.fold 1 --trainer TwoShortEpochs --work work".split()
    env = os.environ | {"nnUNet_extTrainer": str(tmp_path / "trainers")}
    said = []
    for output in ("labels", "again"):
        command = [*script, *words, "--output", output]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    assert "Epoch 1" in said[0]
    assert "Epoch" not in said[1]  # nothing is done twice
    assert said[1].endswith("again: labels of the fold's validation cases, 1 files\n")
    assert json.loads((tmp_path / "labels" / "run.json").read_text())["steps"] == 500
    (label,) = (tmp_path / "labels").glob("*.nii.gz")
    read_label(label, like=read_image([tmp_path / "data" / "imagesTr" / label.name]))
