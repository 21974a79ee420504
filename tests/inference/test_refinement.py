"""Refined labels of tiles: by index as by interpolation, from kept as from recomputed features, in the right places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend.refine import PointRend
from vnet.core.config import load_config
from vnet.inference.prediction import Prediction
from vnet.inference.refinement import points_by_tile
from vnet.inference.segment import segment
from vnet.inference.tiling import lay_tiles
from vnet.model.segmenter import Segmenter, build_model

SIZE = (40, 44, 52)
WORDS = ["--network.width", "4", "--network.kernel", "3", "--network.norm", "instance"]


def model(arm: str) -> Segmenter:
    """An untrained network whose head changes many labels."""
    made = build_model(load_config(["--arm", arm, *WORDS]), in_channels=1, classes=3).eval()
    torch.manual_seed(1)
    assert made.head is not None
    with torch.no_grad():
        made.head.head.logits.weight[:, :-3].normal_(std=0.3)
        made.network.logits.weight.normal_(std=0.3)
    return made


def image() -> torch.Tensor:
    noise = torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(0))
    return 3 * F.avg_pool3d(noise[None], 5, 1, 2)[0]


def predict(arm: str, patch: tuple[int, int, int], size: tuple[int, ...] = SIZE, **rules: Any) -> Prediction:
    made = model(arm)
    return segment(made, image(), size, patch=patch, overlap=0.25, refine=True, refine_fraction=0.3, **rules)


@pytest.mark.parametrize("mirror", [(), ("x",), ("z", "y")])
@pytest.mark.parametrize("patch", [(32, 32, 32), (48, 48, 64)])
@pytest.mark.parametrize("arm", ["lean_s4", "pointrend_s2"])
def test_reading_by_index_changes_no_label(
    arm: str, patch: tuple[int, int, int], mirror: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_index = predict(arm, patch, mirror=mirror)
    grids: list[Any] = []
    plain = PointRend.predict_points

    def between_voxels(self: PointRend, *args: Any, grid: Any = None) -> torch.Tensor:
        grids.append(grid)
        return plain(self, *args)

    monkeypatch.setattr(PointRend, "predict_points", between_voxels)
    interpolated = predict(arm, patch, mirror=mirror)
    assert set(grids) == {patch}
    np.testing.assert_array_equal(by_index.index, interpolated.index)
    np.testing.assert_array_equal(by_index.labels, interpolated.labels)
    assert (by_index.labels != by_index.unrefined).mean() > 0.02


def test_a_finer_grid_is_not_read_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[Any] = []
    plain = PointRend.predict_points

    def noted(self: PointRend, *args: Any, grid: Any = None) -> torch.Tensor:
        grids.append(grid)
        return plain(self, *args, grid=grid)

    monkeypatch.setattr(PointRend, "predict_points", noted)
    predict("lean_s4", (32, 32, 32), size=(60, 66, 80))
    assert set(grids) == {None}


@pytest.mark.parametrize("size", [SIZE, (60, 66, 80)])
@pytest.mark.parametrize("arm", ["lean_s4", "pointrend_s2", "pointrend_s1"])
def test_kept_and_recomputed_features_give_the_same_labels(
    arm: str, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vnet.inference.segment.saved_bytes", lambda *_: 0)
    made = []
    for room in (0, 200_000, 2**30):
        monkeypatch.setattr("vnet.inference.segment.KEPT_BYTES", room)
        made.append(predict(arm, (32, 32, 32), size, mirror=("x",)))
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].labels, other.labels)
        np.testing.assert_array_equal(made[0].refined_uncertainty, other.refined_uncertainty)


def test_labels_of_refined_voxels_alone_change_and_unrefined_ones_are_found_again() -> None:
    refined = predict("lean_s4", (32, 32, 32))
    plain = segment(
        model("lean_s4"), image(), SIZE, patch=(32, 32, 32), overlap=0.25, refine=False, refine_fraction=0.3
    )
    np.testing.assert_array_equal(refined.unrefined, plain.labels)
    changed = np.flatnonzero(refined.labels != plain.labels)
    assert np.isin(changed, refined.index).all()
    assert plain.unrefined is plain.labels


@given(
    size=st.tuples(*[st.integers(3, 40)] * 3),
    working=st.tuples(*[st.integers(3, 60)] * 3),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_every_point_is_given_to_the_tile_nearest_to_it(
    size: tuple[int, int, int], working: tuple[int, int, int], share: float, seed: int
) -> None:
    grid = lay_tiles(working, (16, 8, 16), overlap=0.25, align=(2, 2, 2))
    extent = [n / m for n, m in zip(working, grid.canvas, strict=True)]
    voxels = int(np.prod(size))
    index = torch.randperm(voxels, generator=torch.Generator().manual_seed(seed))[: int(share * voxels)].sort().values
    found = list(points_by_tile(grid, size, index, extent))
    assert [number for number, _ in found] == sorted({number for number, _ in found})
    places = torch.cat([one for _, one in found]) if found else torch.zeros(0, dtype=torch.int64)
    assert torch.equal(places.sort().values, torch.arange(len(index)))
    centres = torch.tensor(grid.corners()) + torch.tensor(grid.tile) / 2
    for number, mine in found:
        assert (mine.diff() > 0).all()
        at = torch.stack(torch.unravel_index(index[mine], size), dim=1)
        where = (at + 0.5) / torch.tensor(size) * torch.tensor(extent) * torch.tensor(grid.canvas)
        distance = (where[:, None] - centres).abs()  # (N, tiles, 3)
        torch.testing.assert_close(distance[:, number], distance.amin(1), atol=1e-3, rtol=1e-4)
