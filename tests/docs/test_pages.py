"""What the docs name exists: links, anchors, scripts, configs, make targets, keys; the page of keys is current.

The Python blocks of docs/networks.md, each run by itself, and docs/tour.ipynb, run cell by cell, as they stand.
"""

from __future__ import annotations

import json
import re
import resource
import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor

from pointrend import render_labels
from scripts.benchmark import BENCHMARKS
from scripts.write_docs import MARK, PAGE, configuration_page
from tests.docs.pages import LOG, PAGES, ROOT, anchors, blocks, execute, links, one_line, run_vnet
from vnet.commands.main import COMMANDS
from vnet.core.config import Config
from vnet.core.config.keys import flatten

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
