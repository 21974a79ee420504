"""The README's own lines, run as they stand (with fewer steps), and its length."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.docs.pages import README, ROOT, blocks, execute, run_vnet, section, tables
from vnet.commands import tensorboard
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.training.study import vnet_command, vnet_environment

SHORT = {
    "--training.steps": "3",
    "--network.width": "2",
    "--points.num_points": "64",
    "--study.arms": "{dense: {}, planned: {}}",
    "--threads": "1",
}


def lines_below(heading: str) -> list[str]:
    """The lines of the first block of shell commands below a heading."""
    return blocks(section(README.read_text(), heading), "sh")[0].strip().splitlines()


def python_below(heading: str) -> list[str]:
    return blocks(section(README.read_text(), heading), "python")


def run_line(line: str, data: Path, folder: Path, *, more: Sequence[str] = ()) -> str:
    """The stdout of a line of the README, `DATA` being a folder of data."""
    program, *words = shlex.split(line.replace("DATA", str(data)))
    assert program == "vnet"
    return run_vnet([*words, *more], folder)


def serves_tensorboard(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/", timeout=5) as page:
            return b"TensorBoard" in page.read()
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.slow
def test_your_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check, plan, experiment, predict, board = lines_below("Your own data")
    data = tmp_path / "data"
    write_phantoms(data, 5, seed=1, kind=PhantomKind(size=(16, 20, 24), orientations=("RAS", "LPS")))
    assert run_line(check, data, tmp_path).splitlines()[-1] == f"a config for it: {plan.replace('DATA', str(data))}"
    command, file = plan.split(" > ")
    (tmp_path / file).write_text(run_line(command, data, tmp_path))
    short = [word for pair in SHORT.items() for word in pair]
    assert "planned - dense" in run_line(experiment, data, tmp_path, more=short)
    run_line(predict, data, tmp_path)
    assert len(list((tmp_path / "predicted").glob("*.nii.gz"))) == 5
    tensorboard_starts(board, tmp_path)
    monkeypatch.chdir(tmp_path)
    predictor_labels_the_scan(next((data / "imagesTr").glob("*.nii.gz")))


def tensorboard_starts(line: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = vnet_command(*shlex.split(line)[1:], "--port", str(port))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=folder, env=vnet_environment(), **quiet)
    try:
        tries = 0
        while not serves_tensorboard(port) and tries < 60:
            tries += 1
            time.sleep(0.5)
        assert serves_tensorboard(port)
        with urllib.request.urlopen(f"http://localhost:{port}/{tensorboard.PATH}", timeout=5) as page:
            assert page.read().decode() == tensorboard.PAGE
    finally:
        process.terminate()
        process.wait()


def predictor_labels_the_scan(image: Path) -> None:
    """The Python lines of docs/prediction.md give the labels that `vnet predict` has written."""
    Path("scan.nii.gz").write_bytes(image.read_bytes())
    written = np.asarray(nibabel.load(Path("predicted", image.name)).dataobj)
    names = execute(blocks((ROOT / "docs/prediction.md").read_text(), "python")[0])
    assert np.array_equal(nibabel.load("labels.nii.gz").get_fdata(), written)
    assert names["doubt"].dtype == np.uint8
    assert names["doubt"].shape == written.shape
    np.testing.assert_allclose(names["probabilities"].sum(-1), 1, rtol=1e-2)


def dice(labels: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean Dice of class 1 over samples."""
    overlap, total = (labels * truth).flatten(1).sum(1), (labels + truth).flatten(1).sum(1)
    return float((2 * overlap / total).mean())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small steps: a second thread brings little, and costs much beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_head_on_a_unet_is_a_gain() -> None:
    """The README's training, once more without the head and once with the paper's; images that were not trained on."""
    code = python_below("The head on your own network")[0]
    line = "    loss = loss + head.loss(coarse, features, image, labels)\n"
    assert line in code
    assert "PointRend(" in code
    variants = {
        "head": code,
        "paper": code.replace("PointRend(", "PointRend.paper("),
        "no head": code.replace(line, ""),
    }
    found = {}
    for name, variant in variants.items():
        torch.manual_seed(0)
        names = execute(variant)
        refinement = names["refined"]
        labels = refinement.unrefined if name == "no head" else refinement.labels
        found[name] = dice(labels.long(), names["labels"])
        assert labels.shape == names["labels"].shape
    # five seeds: .791 to .820, .744 to .787, .717 to .742
    assert found["head"] > 0.77
    assert found["head"] - found["paper"] > 0.015
    assert found["head"] - found["no head"] > 0.04


def test_getpoint_draws_at_the_boundary() -> None:
    names = execute(python_below("The head on your own network")[1])
    points, mask = names["points"], names["mask"]
    assert points.shape[1] == mask.ndim
    padded = np.pad(mask, 1, mode="edge")
    shifts = [padded[i : i + mask.shape[0], j : j + mask.shape[1]] for i in range(3) for j in range(3)]
    near = np.any([shift != mask for shift in shifts], axis=0)
    assert near[tuple(np.floor(points).astype(int).T)].mean() > 0.5  # uniform points: 6 %


def test_every_python_block_of_the_readme_is_run() -> None:
    # the third, on torchvision's Mask R-CNN, in tests/pointrend/integrations/test_torchvision.py
    assert len(blocks(README.read_text(), "python")) == 3


def test_the_two_commands_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in lines_below("Two commands"):
        assert re.search(rf"^{line.split()[1]}:.*##", makefile, re.MULTILINE), line


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 160
    (results,) = [table for table in tables(text) if "Dice" in table.header]
    assert len(results.rows) <= 6
