"""What the docs name exists, and what the README shows runs as printed."""

from __future__ import annotations

import json
import re
import resource
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor

from pointrend import render_labels
from scripts.benchmark import BENCHMARKS
from scripts.write_docs import MARK, PAGE, configuration_page
from tests.docs.pages import (
    LOG,
    PAGES,
    README,
    ROOT,
    anchors,
    blocks,
    execute,
    links,
    one_line,
    run_vnet,
    section,
    tables,
)
from vnet.commands import tensorboard
from vnet.commands.main import COMMANDS
from vnet.core.config import Config
from vnet.core.config.keys import flatten
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.training.study import vnet_command, vnet_environment

EVERY = pytest.mark.parametrize("page", [*PAGES, LOG], ids=lambda page: page.name)


@EVERY
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text()):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


@EVERY
def test_files_named_are_there(page: Path) -> None:
    text = page.read_text()
    folders = "scripts|configs|tests|vnet|pointrend|results|docs"
    for name in re.findall(rf"\b((?:{folders})/[\w/]+\.(?:py|yaml|md|csv))\b", text):
        assert (ROOT / name).is_file() or "mine" in name, name  # mine: what a reader makes
    for name in re.findall(r"\b(\w+\.py) [a-z]", text):
        assert (ROOT / "scripts" / name).is_file(), name


@EVERY
def test_configs_named_on_a_command_line_are_there(page: Path) -> None:
    if page.name == "errors.md":
        pytest.skip("names configs that are not there on purpose")
    for name in re.findall(r"--config (\w+)(?![\w./])", page.read_text()):
        assert name in ("FILE", "study_mine") or (ROOT / "configs" / f"{name}.yaml").is_file(), name


@EVERY
def test_make_targets_named_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@EVERY
def test_commands_and_benchmarks_named_are_there(page: Path) -> None:
    if page.name == "errors.md":
        pytest.skip("names commands that are not there on purpose")
    text = page.read_text()
    for name in re.findall(r"(?:^|`)vnet ([a-z]+)\b", text, re.MULTILINE):
        assert name in COMMANDS, name
    for name in re.findall(r"benchmark\.py ([a-z]\w*)", one_line(text)):
        assert name in BENCHMARKS, name


@EVERY
def test_keys_named_are_of_the_schema(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "errors.md"):
        pytest.skip("names old and wrong keys on purpose")
    known = set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE))
    sections = "data|network|points|training|inference|study|metrics"
    for key in re.findall(rf"(?:`|--)((?:{sections})\.\w+)(?=[` :])", page.read_text()):
        assert key in known, key


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_says_purpose_command_cost_and_result(config: Path) -> None:
    head = re.match(r"(?:#.*\n)+", config.read_text())
    assert head
    assert re.search(r"^# Run:    (vnet|python scripts/\w+\.py) ", head[0], re.MULTILINE)
    for word in ("# Cost:   ", "# Result: "):
        assert word in head[0], word
    assert yaml.safe_load(config.read_text())
    (command,) = re.findall(r"--config (?:configs/)?(\w+)", head[0])[:1]
    assert command == config.stem


def test_the_page_of_keys_is_current() -> None:
    assert PAGE.read_text() == configuration_page(), "run: python scripts/write_docs.py"


def test_every_key_has_a_row_with_its_default_and_meaning() -> None:
    lines = [line for line in configuration_page().split(MARK)[1].splitlines() if line.startswith("| `")]
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines)
    keys = flatten(Config(name="x").to_dict())
    assert {f"`{key}`" for key in keys} == set(rows)
    for key, row in rows.items():
        kind, default, meaning = row.split(" | ")
        assert kind
        assert default.startswith("`"), key
        assert len(meaning) > 10, key
    assert rows["`points.oversample_ratio`"].startswith("float | `10.0` | k: ")
    assert rows["`data.fold`"].startswith("int, or `all` | `0` | ")


BLOCKS = blocks((ROOT / "docs/networks.md").read_text(), "python")
HEADS = [code for code in BLOCKS if "head.refine" in code]
OTHERS = [code for code in BLOCKS if "head.refine" not in code]


def test_every_network_has_its_block() -> None:
    named = [code.split("network = ")[1].split("(")[0] for code in HEADS]
    assert named == ["UNet", "SegResNet", "DynUNet", "SwinUNETR"]
    assert len(OTHERS) == 3


@pytest.mark.parametrize("code", HEADS, ids=lambda code: code.split("network = ")[1].split("(")[0])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_head_reads_the_network(code: str) -> None:
    torch.manual_seed(0)
    names = execute(code)
    coarse, features, image, refined = (names[name] for name in ("coarse", "features", "image", "refined"))
    assert {len(maps) for maps in features.values()} == {len(image)}
    assert torch.equal(refined.unrefined, render_labels(coarse, image.shape[2:]))
    count = int(code.split("num_points=")[1].rstrip(")\n"))
    changed = (refined.labels != refined.unrefined).flatten(1)
    for sample, index in enumerate(refined.index):
        assert len(index) == count
        assert set(changed[sample].nonzero()[:, 0].tolist()) <= set(index.tolist())
    assert changed.any()
    reached = [p for p in names["network"].parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert reached, "the loss of the points reaches the network"


def test_rendering_and_getpoint() -> None:
    render, transform, draw = OTHERS
    names = execute(render)
    dense = torch.nn.functional.interpolate(names["logits"], (96, 128, 160), mode="trilinear").argmax(1)
    assert (names["labels"] != dense).float().mean() < 1e-6
    case: dict[str, Any] = execute(transform)["case"]
    assert isinstance(case["pred"], MetaTensor)
    assert case["pred"].shape == (1, 96, 128, 160)
    assert torch.equal(case["pred"].affine, case["image"].affine)
    names = execute(draw)
    assert len(names["planes"]) == len(names["points"])
    inside = names["mask"][tuple(np.floor(names["points"]).astype(int).T)]
    assert 0.2 < inside.mean() < 0.8


NOTEBOOK = ROOT / "docs" / "tour.ipynb"
MOST_CPU_SECONDS = 240  # two minutes of two cores; the clock itself would fail on a machine that does other work


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_goes_from_data_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names: dict[str, Any] = {}
    start = cpu_seconds()
    for source in code_cells():
        if source.startswith("!vnet "):
            run_vnet(shlex.split(source.removeprefix("!vnet ")), tmp_path)
        else:
            exec(compile(source, NOTEBOOK.name, "exec"), names)
    plt.close("all")
    assert cpu_seconds() - start < MOST_CPU_SECONDS
    assert names["refined"].shape == names["truth"].shape
    assert names["fixed"].sum() > names["broken"].sum()
    assert (names["table"]["refined"] > names["table"]["unrefined"]).all()
    assert (tmp_path / "runs/tour/picture.png").stat().st_size > 10_000


def test_the_notebook_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert "/home/" not in text
    assert str(ROOT) not in text
    assert "/root/" not in text


SHORT = {
    "--training.steps": "3",
    "--network.width": "2",
    "--study.arms": "{dense: {}, planned: {points: {num_points: 64}}}",
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
