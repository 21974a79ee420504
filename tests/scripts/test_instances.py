"""The study on nuclei: reading, split, scores against values by hand, refusals, and a run from training to tables."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.nuclei.config import Config, load_config
from scripts.nuclei.images import Images, instances, normalised, random_crop, read_images, split_by_likeness
from tests.docs.pages import tables
from vnet.core.errors import InputError
from vnet.core.files import RunLock

ROOT = Path(__file__).parents[2]


def discs(count: int = 12, side: int = 96) -> Images:
    """Images of four bright discs each, in three groups of brightness."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    images, labels = [], []
    for i in range(count):
        label = np.zeros((side, side), np.int32)
        for k, (y, x) in enumerate([(22, 20), (25, 70), (70, 30), (66, 72)], start=1):
            y, x, radius = y + rng.integers(-4, 5), x + rng.integers(-4, 5), rng.integers(9, 15)
            label[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = k
        level = (10, 20, 40)[i % 3]
        images.append((level * (label > 0) + rng.integers(0, 4, label.shape) + i % 3).astype(np.uint8))
        labels.append(label)
    return Images(tuple(f"image{i:02}" for i in range(count)), np.array(images), np.array(labels))


def write(path: Path, source: Images, /, **changed: object) -> Path:
    arrays = {"names": np.array(source.names), "images": source.images, "labels": source.labels} | changed
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


# ---- images


def test_boxes_run_from_edge_to_edge_of_the_pixels():
    label = np.zeros((5, 7), np.int32)
    label[0, 0] = 4
    label[2:4, 3:7] = 9
    label[4, 1] = 9
    masks, boxes = instances(label)
    assert boxes.tolist() == [[0, 0, 1, 1], [1, 2, 7, 5]]
    assert masks.sum((1, 2)).tolist() == [1, 9]
    assert instances(label, least=2)[1].tolist() == [[1, 2, 7, 5]]


def test_exposure_is_taken_out():
    image = np.arange(100, dtype=np.uint8).reshape(10, 10)
    np.testing.assert_allclose(normalised(image), image / np.percentile(image, 99.8), rtol=1e-6)
    assert normalised(np.zeros((4, 4), np.uint8)).max() == 0


def test_a_crop_turns_image_and_instances_alike():
    images = discs(1)
    shade = images.labels[0].astype(np.float32)  # the image says the instance itself
    for seed in range(20):
        crop, label = random_crop(shade, images.labels[0], 64, np.random.default_rng(seed))
        assert crop.shape == label.shape == (64, 64)
        assert label.any()
        for value in np.unique(label):
            assert len(np.unique(crop[label == value])) == 1


def test_alike_images_stay_together_and_the_split_is_the_same_every_time():
    images = discs(12)
    rows = split_by_likeness(images, clusters=3, test=4, validation=4)
    assert rows == split_by_likeness(images, clusters=3, test=4, validation=4)
    groups = {i % 3: {row["part"] for row in rows[i::3]} for i in range(3)}
    assert sorted(part for parts in groups.values() for part in parts) == ["test", "train", "validation"]
    assert all(row["nuclei"] == 4 for row in rows)
    with pytest.raises(InputError, match="12 images cannot be split into 13 groups and three parts; lower clusters"):
        split_by_likeness(images, clusters=13, test=4, validation=4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "holds no labels; it needs names, images, labels"),
        ({"labels": np.zeros((12, 96, 95), np.int32)}, "masks have the size of their image"),
        ({"labels": np.zeros((12, 96, 96))}, "labels must be whole numbers, one per instance, got float64"),
        ({"images": np.zeros((12, 96, 96))}, r"images must be uint8 \(N, H, W\), got float64"),
        ({"names": np.array(["a"] * 12)}, "image a is there more than once"),
    ],
)
def test_files_that_cannot_be_used_are_named(changed, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_images(write(tmp_path / "some.npz", discs(), **changed))


def test_an_image_without_instances_is_named(tmp_path):
    images = discs()
    images.labels[[2, 5]] = 0
    with pytest.raises(InputError) as refused:
        read_images(write(tmp_path / "some.npz", images))
    assert len(refused.value.faults) == 2
    assert refused.value.faults[0].endswith("image image02 has no instances; label some, or leave it out")
    (tmp_path / "torn.npz").write_bytes(b"PK nothing")
    for name in ("torn.npz", "missing.npz"):
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_images(tmp_path / name)


# ---- config


def test_the_file_then_the_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 7\nseeds: [3, 4]\narms: [conv28]\n")
    config = load_config(["--config", str(file), "--steps", "9"])
    assert (config.steps, config.seeds, config.arms) == (9, [3, 4], ["conv28"])
    assert [(run.arm, run.seed) for run in config.runs()] == [("conv28", 3), ("conv28", 4)]
    own = load_config(["--config", str(file), "--arm", "pointrend7", "--seed", "5"])
    assert [(run.arm, run.seed) for run in own.runs()] == [("pointrend7", 5)]


def test_the_hash_leaves_out_places_and_the_list_of_runs():
    one = Config(arm="conv28", seed=0)
    same = Config(arm="conv28", seed=0, data="elsewhere", run_root="x", threads=2, seeds=[7], arms=["conv28"])
    assert one.hash("data") == same.hash("data")
    assert len({one.hash("data"), one.hash("other"), Config(arm="conv28", seed=1).hash("data")}) == 3


def test_the_committed_config_loads():
    config = load_config(["--config", str(ROOT / "configs" / "nuclei.yaml")])
    assert len(config.runs()) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "command line: unknown key step; did you mean steps?"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--steps", "many"], "steps"),
        (["--crop", "100"], "crop must be a multiple of 32, got 100"),
        (["--arm", "mask"], "unknown arm mask; it is one of conv28, pointrend28, pointrend7"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(words, message):
    with pytest.raises(InputError) as refused:
        load_config(words)
    assert len(refused.value.faults) == 1
    assert message in refused.value.faults[0]


# ---- scores


def square(top: int, left: int, side: int, size: int = 24) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.mark.detection
def test_boundary_iou_by_hand():
    from scripts.nuclei.scoring import boundary, boundary_iou, iou

    whole = square(4, 4, 10)
    assert boundary(whole, 2).sum() == 100 - 36
    assert (boundary(whole, 2) == whole & ~square(6, 6, 6)).all()
    assert boundary(square(0, 0, 10), 2).sum() == 64  # the image's edge is an edge
    assert boundary(whole, 5).sum() == 100
    assert not boundary(np.zeros((5, 5), bool), 2).any()
    moved = square(4, 5, 10)  # one pixel to the side
    assert iou(whole, moved) == 90 / 110
    # shared edge pixels: rows 4, 5 and 12, 13 over columns 5 to 14 (36), and of the sides' 2 columns 1 each (12)
    assert boundary_iou(whole, moved, 2) == (36 + 12) / (64 + 64 - 48)
    assert iou(np.zeros((3, 3), bool), np.zeros((3, 3), bool)) == 1


@pytest.mark.detection
def test_average_precision_by_hand():
    from scripts.nuclei.scoring import average_precision

    truth = [np.stack([square(2, 2, 10), square(2, 13, 10)]), square(4, 4, 10)[None]]
    perfect = average_precision(truth, truth, [np.array([0.9, 0.8]), np.array([0.7])], {"edge": 2})
    assert all(values == pytest.approx([1, 1, 1]) for values in perfect.values())
    # the one of the second image is moved by a pixel: IoU .818 passes .5 to .8, seven of ten thresholds; boundary IoU
    # .6 passes three. A perfect one with a lower score in the first image is missing.
    found = [square(2, 2, 10)[None], square(4, 5, 10)[None]]
    scores = [np.array([0.9]), np.array([0.7])]
    results = average_precision(truth, found, scores, {"edge": 2})
    # COCO's 101 recall points: of two truths one found covers 51
    np.testing.assert_allclose(results["ap"][1:], [51 / 101, 0.7])
    np.testing.assert_allclose(results["edge"][1:], [51 / 101, 0.3])
    # both images: of three truths two found cover recall up to .66 (67 points), or one up to .33 (34 points)
    np.testing.assert_allclose(results["ap"][0], (7 * 67 + 3 * 34) / 1010)
    np.testing.assert_allclose(results["edge"][0], (3 * 67 + 7 * 34) / 1010)
    nothing = average_precision(truth, [masks[:0] for masks in truth], [np.zeros(0)] * 2, {"edge": 2})
    assert all(values == [0, 0, 0] for values in nothing.values())


# ---- the committed study


def test_the_figures_of_the_docs_are_those_of_the_tables():
    from scripts.nuclei.comparison import NAMED, PARTS, SCORES, arm_scores, labelled, paired, read

    results, text = ROOT / "results" / "nuclei", (ROOT / "docs" / "instances.md").read_text()
    cases = labelled(read(results, "cases.csv"))
    scores = arm_scores(read(results, "runs.csv"), cases).groupby("row").mean()
    by_header = {table.header: table.rows for table in tables(text)}
    rows = by_header["arm", *SCORES.values()]
    assert [row[0].strip("`").replace("`", "") for row in rows] == list(scores.index)
    for row in rows:
        expected = [f"{scores.loc[row[0].replace('`', ''), key]:.3f}".lstrip("0") for key in SCORES]
        assert list(row[1:]) == expected, row[0]
    rows = by_header["first - second", "score", "mean", "over images", "over seeds"]
    names = {name: key for key, name in SCORES.items()}
    pairs = {" - ".join(pair): pair for pair in (*NAMED, *PARTS)}
    for pair, score, *cells in rows:
        found = paired(cases, *pairs[pair.replace("`", "")], names[score])
        spans = [(found.low, found.high), found.over_trainings]
        expected = [f"{found.mean:+.3f}", *(f"{low:+.3f} to {high:+.3f}" for low, high in spans)]
        assert cells == [cell.replace("0.", ".") for cell in expected], pair


def test_the_split_is_the_committed_one_in_every_table():
    import pandas as pd

    split = json.loads((ROOT / "results/nuclei/splits.json").read_text())
    parts = {part: [row for row in split if row["part"] == part] for part in ("train", "validation", "test")}
    assert [len(rows) for rows in parts.values()] == [33, 10, 17]
    assert [sum(row["nuclei"] for row in rows) for rows in parts.values()] == [794, 268, 371]
    groups = [{row["group"] for row in rows} for rows in parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 12
    cases = pd.read_csv(ROOT / "results/nuclei/cases.csv")
    assert set(cases["image"]) == {row["image"] for row in parts["test"]}


# ---- the whole way


TINY = ["--steps", "4", "--batch", "1", "--crop", "64", "--width", "4", "--channels", "8", "--head_width", "8",
        "--coarse_width", "8", "--clusters", "3", "--test_images", "4", "--validation_images", "4",
        "--validate_every", "2", "--checkpoint_every", "2"]  # fmt: skip


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A config of four steps on twelve small images, and the folder of its results."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "discs.npz", discs())
    words = [*TINY, "--data", "discs.npz", "--name", "small"]

    def config(*more: str) -> Config:
        return load_config([*words, *more])

    return config, tmp_path / "results"


@pytest.mark.detection
@pytest.mark.slow
def test_a_study_from_training_to_tables(small):
    from scripts.nuclei.comparison import report
    from scripts.nuclei.training import train_study

    config, results = small
    train_study(config("--seeds", "[0,1]", "--arms", "[conv28,pointrend7]"), results)
    text = report(results)
    assert "pointrend7, unrefined" in text
    runs = (results / "runs.csv").read_text()
    assert len(runs.splitlines()) == 5
    assert len((results / "curves.csv").read_text().splitlines()) == 1 + 4 * 2
    cases = (results / "cases.csv").read_text().splitlines()
    assert len(cases) == 1 + 4 * 2 * (1 + 2)  # images, seeds, refined or not
    assert len((results / "nuclei.csv").read_text().splitlines()) == 1 + 16 * 2 * 3
    assert {row["part"] for row in json.loads((results / "splits.json").read_text())} == {"train", "validation", "test"}
    # done runs are passed over, and merging them again changes nothing
    train_study(config("--seeds", "[0,1]", "--arms", "[conv28,pointrend7]"), results)
    assert (results / "runs.csv").read_text() == runs
    assert not list(Path("runs").rglob("lock.json"))
    assert not (results / ".lock").exists()
    held = RunLock(Path("runs/small/conv28/seed9"))
    held.acquire()
    with pytest.raises(InputError, match="seed9: in use by process"):
        train_study(config("--seed", "9", "--arm", "conv28"), results)
    held.release()
    with pytest.raises(InputError, match="holds another experiment"):
        train_study(config("--seed", "0", "--arm", "conv28", "--learning_rate", "0.002"), results)


@pytest.mark.detection
@pytest.mark.slow
def test_a_stopped_run_continues_as_if_it_had_not_been(small, monkeypatch):
    import torch

    from scripts.nuclei import training
    from scripts.nuclei.training import train_study
    from vnet.core.errors import Preempted

    config, results = small
    once = config("--arm", "pointrend28", "--seed", "0", "--run_root", "straight")
    train_study(once, results)
    validate = training.validate

    def then_stop(*args):
        validate(*args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training, "validate", then_stop)
    twice = config("--arm", "pointrend28", "--seed", "0", "--run_root", "stopped")
    with pytest.raises(Preempted):
        train_study(twice, results)
    monkeypatch.setattr(training, "validate", validate)
    train_study(twice, results)
    folders = [Path(root, "small", "pointrend28", "seed0") for root in ("straight", "stopped")]
    one, two = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["model"] for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (folders[0] / "metrics.csv").read_text() == (folders[1] / "metrics.csv").read_text()


@pytest.mark.detection
def test_prediction_in_given_boxes_and_its_refusals(small):
    from PIL import Image

    from scripts.nuclei.detector import predict_file
    from scripts.nuclei.training import train_study

    config, results = small
    train_study(config("--arm", "pointrend7", "--seed", "0"), results)
    run, images = Path("runs/small/pointrend7/seed0"), discs(2)
    file = write(Path("new.npz"), images, labels=None)
    assert predict_file(run, file, Path("found"), score=0.0) == 2
    assert sorted(path.name for path in Path("found").iterdir()) == ["image00.png", "image01.png", "instances.csv"]
    boxes = Path("boxes.csv")
    boxes.write_text("image,x1,y1,x2,y2\nimage00,5.5,4,40.25,50\nimage01,50,50,90,96\n")
    assert predict_file(run, file, Path("given"), boxes=boxes) == 2
    label = np.array(Image.open("given/image00.png"))
    assert label.dtype == np.uint16
    assert not label[50:].any()
    assert not label[:, 40:].any()  # 40.25 ends before the centre of column 40
    for line, message in [
        ("image00,5,4,97,50", r"line 2: box \[5.0, 4.0, 97.0, 50.0\] lies outside of its image of 96 x 96 pixels"),
        ("image00,5,4,5,50", "line 2: x1 must be below x2 and y1 below y2"),
        ("image00,5,4,x,50", "line 2: x1,y1,x2,y2 must be numbers"),
        ("image07,5,4,9,50", "line 2: no image image07 in the input"),
        ("image00,5,4,9,50", "no box in image image01; add one, or leave the image out"),
    ]:
        boxes.write_text(f"image,x1,y1,x2,y2\n{line}\n")
        with pytest.raises(InputError, match=message):
            predict_file(run, file, Path("given"), boxes=boxes)
    with pytest.raises(InputError, match="nowhere: not a trained run"):
        predict_file(Path("nowhere"), file, Path("given"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the command must be one of train, predict, compare, got nothing"),
        (["test"], "the command must be one of train, predict, compare, got test"),
        (["train", "--stepz", "3"], "unknown key stepz; did you mean steps?"),
        (["compare", "nowhere"], "nowhere/runs.csv: is not there"),
        (["predict"], "the following arguments are required: RUN, --input, --output"),
    ],
)
def test_a_fault_of_the_script_is_one_line(words, message, tmp_path):
    script = str(ROOT / "scripts" / "instances.py")
    done = subprocess.run(
        [sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_missing_extra_is_one_line(tmp_path):
    """Packages that cannot be imported stand before those of the extra, installed or not."""
    for package in ("torchvision", "pycocotools"):
        (tmp_path / f"{package}.py").write_text(f"raise ImportError('no {package} here')\n")
    script = str(ROOT / "scripts" / "instances.py")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = [sys.executable, script, "train", "--data", "none.npz"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert re.search(r"the detection extra cannot be imported \(no (torchvision|pycocotools) here\)", done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
