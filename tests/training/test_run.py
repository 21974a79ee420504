"""A run from config to tables: done, continued, refused, the same bits again; volumes of odd kinds, as a user would."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.crash.trial import differences
from tests.fixtures import NAMES, RUN, run_vnet, write_run, write_volume
from vnet.core.config import load_config
from vnet.core.errors import InputError, RunFault
from vnet.core.randomness import point_generators, sample_seed
from vnet.data.dataset import open_dataset
from vnet.data.folds import select_fold
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.data.prepared import prepare_data
from vnet.data.volumes import read_image
from vnet.evaluation import scores
from vnet.evaluation.predictions import Predictions, complete_folds
from vnet.evaluation.study_tables import read_study
from vnet.inference.label_files import predict_files
from vnet.inference.predictor import Predictor
from vnet.model.checkpoints import read_checkpoint, start_from
from vnet.model.segmenter import build_model
from vnet.report.output import print_run_summary
from vnet.report.report import build_report
from vnet.training.kept_results import keep_run
from vnet.training.optimizer import learning_rate, update_weights
from vnet.training.run import evaluate_run, train_run
from vnet.training.trainer import Preempted, Trainer
from vnet.training.validation import RunLogger


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def curves(folder: Path) -> dict[str, list[tuple[int, object]]]:
    """All that the board shows: curves, pictures, meshes and texts, but for speeds and where the run lies."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    shown: dict[str, list[tuple[int, object]]] = {}
    for tag in events.Tags()["scalars"]:
        shown[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        shown[tag] = [(event.step, event.encoded_image_string) for event in events.Images(tag)]
    for tag in events.Tags()["tensors"]:
        shown[tag] = [(event.step, event.tensor_proto.SerializeToString()) for event in events.Tensors(tag)]
    return {tag: points for tag, points in shown.items() if "8 speed" not in tag and "about/config" not in tag}


def test_a_run_leaves_what_the_contract_names(tiny: list[str]) -> None:
    config = load_config([*tiny, "--arm", "pointrend_s2"])
    folder = train_run(config).folder
    assert folder == Path("runs/tiny/pointrend_s2/fold0_seed0")
    for name in ("config.yaml", "run.json", "log.txt", "metrics.csv", "cases.csv", "refinement.csv"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("last", "best"):
        assert (folder / f"checkpoints/{name}.ckpt").is_file()
    info = json.loads((folder / "run.json").read_text())
    wanted = (
        "steps seconds_per_step seconds_per_case peak_memory_mib parameters multiply_adds multiply_adds_prediction"
        " commit config_hash data_hash"
    )
    assert set(wanted.split()) <= set(info)
    assert info["steps"] == 6
    cases = rows(folder / "cases.csv")
    assert list(cases[0])[:10] == "arm fold seed case structure refined dice surface_dice hd95_mm assd_mm".split()
    validation = {row["case"] for row in cases}
    structures = {row["structure"] for row in cases}
    assert len(cases) == len(validation) * len(structures) * 2
    assert {row["refined"] for row in cases} == {"true", "false"}
    assert [row["step"] for row in rows(folder / "metrics.csv")] == ["3", "6"]
    assert list((folder / "pictures").glob("change_*.png"))  # of what the head changed
    assert all(file.stat().st_size < 100_000 for file in (folder / "pictures").iterdir())


def test_subjects_make_folds_and_stand_in_the_tables(tiny: list[str], own_phantoms: Path, tmp_path: Path) -> None:
    """Six cases, two a subject: the old fold 0 validates on one case, the new one on both of its subject."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (own_phantoms / "labelsTr").glob("*.nii.gz"))
    subjects = {name: f"subject {number // 2}" for number, name in enumerate(names)}
    table = tmp_path / "subjects.csv"
    table.write_text("case,subject\n" + "".join(f"{case},{subject}\n" for case, subject in subjects.items()))
    folds = [{"train": names[1:], "val": names[:1]}, {"train": names[:3], "val": names[3:]}]
    (own_phantoms / "splits.json").write_text(json.dumps({"folds": folds}))
    words = [*tiny, "--data.root", str(own_phantoms), "--data.groups", str(table), "--training.steps", "1"]
    config = load_config([*words, "--training.validate_every", "0"])
    folder = train_run(config).folder
    found = {row["case"]: row["subject"] for row in rows(folder / "cases.csv")}
    assert found == {names[0]: "subject 0", names[1]: "subject 0"}
    held = [fold["val"] for fold in json.loads((folder / "splits.json").read_text())["folds"]]
    assert held == [names[:2], names[2:]]
    assert read_study([folder]).subjects.to_dict() == found
    # a table that now says something else does not slip into a run that has begun
    (folder / "cases.csv").unlink()
    table.write_text(table.read_text().replace(f"{names[1]},subject 0", f"{names[1]},subject 1"))
    with pytest.raises(InputError, match=r"was begun with other folds; restore .*subjects.csv"):
        train_run(config)


def test_each_validation_is_logged_once(tiny: list[str]) -> None:
    folder = train_run(load_config([*tiny, "--arm", "pointrend_s2"])).folder
    shown = curves(folder)
    wanted = (
        "1 dice/0 mean/prediction; 1 dice/0 mean/unrefined; 2 cases/1 worst; 2 cases/4 the same each time; "
        "3 surface, refined labels, all structures, pointrend_s2 fold0 seed0/mesh_VERTEX; "
        "3 surface, error of unrefined labels, all structures, pointrend_s2 fold0 seed0/mesh_COLOR; "
        "4 refinement/fixed; 4 refinement/by distance; 4 refinement/calibration error; 4 refinement/uncertainty; "
        "5 points/within 2 mm; 5 points/of one volume"
    )
    for tag in wanted.split("; "):
        assert [step for step, _ in shown[tag]] == [3, 6], tag
    assert list(curves(folder.parent.parent / "guide")) == ["0 guide/what the groups show/text_summary"]
    scored = [float(row["dice"]) for row in rows(folder / "metrics.csv")]
    assert [value for _, value in shown["1 dice/0 mean/prediction"]] == pytest.approx(scored, abs=1e-6)
    fixed, broken = (shown[f"4 refinement/{kind}"][-1][1] for kind in ("fixed", "broken"))
    before, after = (shown[f"4 refinement/wrong {when}"][-1][1] for when in ("before", "after"))
    table = [row for row in rows(folder / "refinement.csv") if row["structure"] == "all structures"]
    asked = sum(int(row[kind]) for row in table for kind in ("fixed", "broken", "unchanged"))
    assert fixed == pytest.approx(sum(int(row["fixed"]) for row in table) / asked)
    assert after == pytest.approx(before - fixed + broken)  # type: ignore[operator]


def test_an_arm_without_a_head_is_never_refined(tiny: list[str]) -> None:
    folder = train_run(load_config([*tiny, "--arm", "coarse_s2"])).folder
    assert {row["refined"] for row in rows(folder / "cases.csv")} == {"false"}
    shown = curves(folder)
    assert "1 dice/0 mean/prediction" in shown
    assert not [tag for tag in shown if "unrefined" in tag or tag.startswith(("4 refinement", "5 points"))]


def interrupt(config_words: list[str], step: int, monkeypatch: pytest.MonkeyPatch, number: int) -> int:
    """Send a signal during `step`; returns the exit code that the run asks for."""
    plain = Trainer.step

    def step_and_signal(self: Trainer, *args: object) -> object:
        terms = plain(self, *args)  # type: ignore[arg-type]
        if self.progress.step == step:
            os.kill(os.getpid(), number)
        return terms

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", step_and_signal)
        with pytest.raises(Preempted) as stop:
            train_run(load_config(config_words))
    return stop.value.exit_code


@pytest.mark.parametrize("arm", ["dense", "pointrend_s2"])
def test_an_interrupted_run_ends_with_the_same_bits(
    tiny: list[str], arm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [*tiny, "--arm", arm]
    straight = train_run(load_config(words)).folder
    again = [*words, "--run_root", "again", "--data.cache", "runs/cache"]
    assert interrupt(again, 1, monkeypatch, signal.SIGTERM) == 75
    assert interrupt(again, 3, monkeypatch, signal.SIGINT) == 130
    assert interrupt(again, 4, monkeypatch, signal.SIGUSR1) == 75
    resumed = train_run(load_config(again)).folder
    one, two = (read_checkpoint(folder / "checkpoints/last.ckpt") for folder in (straight, resumed))
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    for state, other in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(state[name], other[name]) for name in state)
    assert (straight / "cases.csv").read_text() == (resumed / "cases.csv").read_text()
    assert (straight / "refinement.csv").read_text() == (resumed / "refinement.csv").read_text()
    untimed = [
        [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows(folder / "metrics.csv")]
        for folder in (straight, resumed)
    ]
    assert untimed[0] == untimed[1]
    assert curves(straight) == curves(resumed)


def test_a_killed_run_continues_from_its_last_checkpoint(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGKILL: nothing is saved at the end, and events past the checkpoint are in the file."""
    words = [*tiny, "--arm", "pointrend_s2"]
    straight = train_run(load_config(words)).folder
    plain = Trainer.step

    def die(self: Trainer, *args: object) -> object:
        if self.progress.step == 5:
            raise SystemExit("killed")
        return plain(self, *args)  # type: ignore[arg-type]

    again = [*words, "--run_root", "again"]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", die)
        with pytest.raises(SystemExit, match="killed"):
            train_run(load_config(again))
    assert read_checkpoint(Path("again/tiny/pointrend_s2/fold0_seed0/checkpoints/last.ckpt"))["progress"]["step"] == 4
    resumed = train_run(load_config(again)).folder
    assert (straight / "cases.csv").read_text() == (resumed / "cases.csv").read_text()
    assert curves(straight) == curves(resumed)


@pytest.mark.parametrize("place", ["log_first_case", "log_points", "finish"])
def test_a_run_killed_in_its_final_evaluation_logs_it_once(
    tiny: list[str], place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The steps are not made again; the curves of the last step, a logged one, are there once."""
    words = [*tiny, "--arm", "pointrend_s2", "--training.steps", "5", "--training.validate_every", "0"]
    straight = tmp_path / train_run(load_config(words)).folder
    plain = getattr(RunLogger, place)

    def die(self: RunLogger, *args: object) -> None:
        plain(self, *args)
        self.flush()
        raise SystemExit("killed")

    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    with monkeypatch.context() as patched:
        patched.setattr(RunLogger, place, die)
        with pytest.raises(SystemExit, match="killed"):
            train_run(load_config(words))
    with monkeypatch.context() as patched:
        patched.delattr(Trainer, "step")
        resumed = train_run(load_config(words)).folder
    assert differences(straight, resumed) == []
    assert [step for step, _ in curves(resumed)["6 loss/total"]] == [1, 5]
    assert [row["step"] for row in rows(resumed / "metrics.csv")] == ["5"]


def test_a_fold_is_predicted_once_at_the_end(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    predicted: list[int] = []
    plain = scores.predict_volume

    def counted(*args: object) -> object:
        predicted.append(1)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(scores, "predict_volume", counted)
    folder = train_run(load_config([*tiny, "--arm", "pointrend_s2", "--training.validate_every", "0"])).folder
    assert len(predicted) == len({row["case"] for row in rows(folder / "cases.csv")}) == 2


def test_the_same_command_says_that_it_is_done(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config([*tiny, "--arm", "dense"])
    folder = train_run(config).folder
    before = (folder / "checkpoints/last.ckpt").stat().st_mtime_ns
    train_run(config)
    assert "done" in capsys.readouterr().out
    assert (folder / "checkpoints/last.ckpt").stat().st_mtime_ns == before


def test_results_tell_a_fresh_clone_that_a_run_is_done(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config([*tiny, "--arm", "dense"])
    train_run(config)
    keep_run(config, load_config(tiny, apply_arm=False))
    elsewhere = load_config([*tiny, "--arm", "dense", "--run_root", "fresh", "--threads", "2"])
    train_run(elsewhere)
    assert "done" in capsys.readouterr().out
    assert not Path("fresh/tiny").exists()


def test_a_run_folder_with_another_experiment_is_refused(tiny: list[str]) -> None:
    folder = train_run(load_config([*tiny, "--arm", "dense"])).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds another experiment .*another name or run_root"):
        train_run(load_config([*tiny, "--arm", "dense", "--training.learning_rate", "0.1"]))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_foreign_folder_is_refused(tiny: list[str]) -> None:
    config = load_config([*tiny, "--arm", "dense"])
    config.run_folder.mkdir(parents=True)
    (config.run_folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files but no run.json"):
        train_run(config)
    assert [path.name for path in config.run_folder.iterdir()] == ["thesis.txt"]


def test_too_many_bad_steps_stop_the_run_and_name_the_cases(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([*tiny, "--arm", "dense", "--training.max_bad_steps", "2"])

    def poisoned(optimizer: object, loss: torch.Tensor, *args: torch.Tensor, precision: str) -> torch.Tensor:
        return update_weights(optimizer, loss * float("nan"), *args, precision=precision)

    monkeypatch.setattr("vnet.training.trainer.update_weights", poisoned)
    with pytest.raises(RunFault, match=r"3 steps with a non-finite loss .* cases \S+, \S+ \(dice .*learning_rate"):
        train_run(config)


def test_dropped_steps_leave_the_weights_alone(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([*tiny, "--arm", "dense", "--training.max_bad_steps", "9"])

    def poisoned(optimizer: object, loss: torch.Tensor, *args: torch.Tensor, precision: str) -> torch.Tensor:
        return update_weights(optimizer, loss * float("inf"), *args, precision=precision)

    monkeypatch.setattr("vnet.training.trainer.update_weights", poisoned)
    folder = train_run(config).folder
    state = read_checkpoint(folder / "checkpoints/last.ckpt")
    fresh = build_model(config, in_channels=1, classes=len(state["structures"])).state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in state["model"].items())
    assert state["progress"]["bad_steps"] == 6


def test_init_from_starts_with_those_weights(tiny: list[str]) -> None:
    first = train_run(load_config([*tiny, "--arm", "dense"])).folder / "checkpoints/last.ckpt"
    words = ["--name", "second", "--training.init_from", str(first), "--training.learning_rate", "1e-30"]
    second = train_run(load_config([*tiny, "--arm", "dense", *words])).folder / "checkpoints/last.ckpt"
    one, two = read_checkpoint(first)["model"], read_checkpoint(second)["model"]
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    with pytest.raises(InputError, match=r"checkpoint of another network: .*use the config"):
        train_run(load_config([*tiny, "--arm", "dense", "--name", "third", *words[2:4], "--network.width", "8"]))


def rename_structures(root: Path, names: list[str]) -> None:
    description = json.loads((root / "dataset.json").read_text())
    description["labels"] = {str(value): name for value, name in enumerate(names)}
    (root / "dataset.json").write_text(json.dumps(description))


def test_init_from_another_task_leaves_the_last_layer_new(
    tiny: list[str], own_phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_run(load_config([*tiny, "--arm", "coarse_s2"])).folder / "checkpoints/last.ckpt"
    rename_structures(own_phantoms, ["background", "spleen", "kidney", "vessel"])
    words = [*tiny, "--arm", "pointrend_s2", "--data.root", str(own_phantoms), "--name", "second"]
    words += ["--training.init_from", str(first), "--training.learning_rate", "1e-30"]
    config = load_config(words)
    second = train_run(config).folder
    told = capsys.readouterr().out
    assert "new: head, network.logits (structures ['background', 'liver', 'kidney', 'vessel'] there, " in told
    assert "new: head, network.logits" in (second / "log.txt").read_text()
    one, two = (read_checkpoint(path)["model"] for path in (first, second / "checkpoints/last.ckpt"))
    fresh = build_model(config, in_channels=1, classes=4).state_dict()
    for name, value in two.items():
        taken = not name.startswith(("head.", "network.logits."))
        torch.testing.assert_close(value, one[name] if taken else fresh[name])


def test_init_from_two_channels_leaves_the_first_stage_new(tiny: list[str]) -> None:
    folder = train_run(load_config([*tiny, "--arm", "dense"])).folder
    path = folder / "checkpoints/last.ckpt"
    config = load_config([*tiny, "--arm", "dense"])
    dataset = replace(prepare_data(config).dataset, modalities=("T1", "T2"))
    model, untouched = (build_model(config, in_channels=2, classes=4) for _ in range(2))
    line = start_from(model, path, dataset)
    assert line.endswith("new: network.encoders.0 (1 channels there, 2 here)")
    theirs, before = read_checkpoint(path)["model"], untouched.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, (before if name.startswith("network.encoders.0.") else theirs)[name]), name


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(tiny: list[str]) -> None:
    words = [*tiny, "--arm", "dense", "--training.init_from"]
    with pytest.raises(InputError, match="training.init_from: nowhere.ckpt: no such checkpoint; correct the path"):
        train_run(load_config([*words, "nowhere.ckpt"]))
    Path("torn.ckpt").write_bytes(b"PK")
    with pytest.raises(InputError, match="torn.ckpt: not a checkpoint of this project"):
        train_run(load_config([*words, "torn.ckpt"]))
    assert not Path("runs/tiny").exists()


def test_a_run_on_all_cases_is_trained_to_be_used(
    tiny: list[str], phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config([*tiny, "--arm", "pointrend_s2", "--data.fold", "all"])
    folder = train_run(config).folder
    assert folder.name == "foldall_seed0"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert rows(folder / "cases.csv") == []
    print_run_summary(folder)
    assert "no validation case, so no score" in capsys.readouterr().out
    train_run(config)
    assert "done" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"trained on every case .*another data set with --data.root"):
        evaluate_run(folder, [])
    with pytest.raises(InputError, match=r"data.fold: the run was trained for fold all; cases of fold 0 it has seen"):
        evaluate_run(folder, ["--data.fold", "0"])
    with pytest.raises(InputError, match=r"no checkpoint is the best; use --checkpoint last"):
        Predictor(folder, checkpoint="best")
    with pytest.raises(InputError, match="no rows; the runs scored no case"):
        build_report([folder.parent])
    assert len(predict_files(folder, phantoms / "imagesTr", "out")) == 6


def test_seconds_end_the_training_in_place_of_steps(tiny: list[str]) -> None:
    config = load_config([*tiny, "--arm", "dense", "--training.seconds", "2", "--training.steps", "1"])
    info = json.loads((train_run(config).folder / "run.json").read_text())
    assert info["steps"] > 1
    assert info["seconds"] >= 2


def test_evaluating_again_gives_the_same_table(tiny: list[str]) -> None:
    folder = train_run(load_config([*tiny, "--arm", "pointrend_s2"])).folder
    before = (folder / "cases.csv").read_text()
    (folder / "cases.csv").unlink()
    assert evaluate_run(folder, []) == folder
    assert (folder / "cases.csv").read_text() == before


def test_another_data_set_is_scored_apart(tiny: list[str], own_phantoms: Path) -> None:
    folder = train_run(load_config([*tiny, "--arm", "pointrend_s2"])).folder
    before = (folder / "cases.csv").read_text()
    description = json.loads((own_phantoms / "dataset.json").read_text())
    description["training"] = description["training"][:2]
    (own_phantoms / "dataset.json").write_text(json.dumps(description))
    target = evaluate_run(folder, ["--data.root", str(own_phantoms), "--points.refine", "false"])
    assert target == folder / "evaluation" / "own"
    scored = rows(target / "cases.csv")
    assert len({row["case"] for row in scored}) == 2
    assert {row["refined"] for row in scored} == {"false"}
    assert (folder / "cases.csv").read_text() == before


def test_a_case_that_cannot_be_read_does_not_cost_the_others(tiny: list[str], own_phantoms: Path) -> None:
    run = train_run(load_config([*tiny, "--arm", "pointrend_s2"])).folder
    images = sorted((own_phantoms / "imagesTr").iterdir())
    images[1].write_bytes(images[1].read_bytes()[:-500])
    target = run / "evaluation" / "own"
    with pytest.raises(RunFault, match=rf"{images[1].name}: .*(truncated|torn|cut)") as caught:
        evaluate_run(run, ["--data.root", str(own_phantoms)])
    assert (caught.value.exit_code, len(caught.value.faults)) == (3, 1)
    scored = {row["case"] for row in rows(target / "cases.csv")}
    assert scored == {image.name.removesuffix(".nii.gz") for image in images} - {images[1].name.removesuffix(".nii.gz")}
    for image in images:
        image.write_bytes(b"")
    with pytest.raises(InputError) as none:
        evaluate_run(run, ["--data.root", str(own_phantoms)])
    assert none.value.exit_code == 2


def test_the_first_line_of_a_training_names_device_and_arithmetic(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_run(load_config([*tiny, "--arm", "dense", "--device", "cpu"])).folder
    assert "dense on cpu (1 thread), 32-true: " in capsys.readouterr().out
    assert (folder / "log.txt").read_text().startswith("dense on cpu (1 thread), 32-true: ")


def test_validation_and_prediction_use_the_arithmetic_of_the_config(tiny: list[str], phantoms: Path) -> None:
    """Trained in bfloat16: predicted so unless the config says otherwise."""
    words = [*tiny, "--arm", "pointrend_s2", "--training.precision", "bf16-mixed"]
    mixed = train_run(load_config(words)).folder
    words += ["--inference.precision", "32-true", "--run_root", "exact"]
    exact = train_run(load_config(words)).folder
    weights = [read_checkpoint(folder / "checkpoints/last.ckpt")["model"] for folder in (mixed, exact)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (mixed / "cases.csv").read_text() != (exact / "cases.csv").read_text()
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    given, one, two = (
        Predictor(mixed, overrides=words).predict(volume).coarse
        for words in ([], ["--inference.precision", "bf16-mixed"], ["--inference.precision", "32-true"])
    )
    assert torch.equal(given, one)
    assert torch.equal(two, Predictor(exact).predict(volume).coarse)
    assert 0 < (one - two).abs().max() < 0.5


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
