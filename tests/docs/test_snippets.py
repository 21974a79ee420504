"""The Python blocks of docs/networks.md, each run by itself, and docs/tour.ipynb, run cell by cell, as they stand."""

from __future__ import annotations

import json
import resource
import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pointrend import render_labels
from tests.docs.pages import ROOT, blocks, execute, run_vnet

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
