"""The Python blocks of docs/networks.md, each run by itself as it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pointrend import render_labels
from tests.docs.pages import ROOT, blocks, execute

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
