"""Refined labels of tiles: by index as by interpolation, from kept as from recomputed features, in the right places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend.reading import read_at
from pointrend.refine import PointRend
from vnet.core.config import Axes, load_config
from vnet.core.errors import InputError
from vnet.core.runs import open_run
from vnet.data.volumes import read_image
from vnet.inference import calibration
from vnet.inference.calibration import calibrated_margin, changed_margins, share_within
from vnet.inference.ensemble import largest_margin
from vnet.inference.prediction import Prediction
from vnet.inference.predictor import Predictor
from vnet.inference.segment import points_by_tile, segment
from vnet.inference.tiled_network import BlockGrid, KeptFeatures, TiledNetwork, keep_blocks, saved_bytes
from vnet.inference.tiling import Box, lay_tiles
from vnet.model.checkpoints import load_model, read_checkpoint
from vnet.model.segmenter import Segmenter, build_model
from vnet.training.run import train_run

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


@pytest.mark.parametrize("arm", ["lean_s4", "pointrend_s2"])
def test_the_first_layer_by_voxel_changes_no_label(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_voxel = predict(arm, (32, 32, 32), size=(60, 66, 80))
    monkeypatch.setattr("pointrend.refine.works_by_voxel", lambda *_: False)
    by_point = predict(arm, (32, 32, 32), size=(60, 66, 80))
    np.testing.assert_array_equal(by_voxel.index, by_point.index)
    np.testing.assert_array_equal(by_voxel.labels, by_point.labels)
    np.testing.assert_allclose(by_voxel.refined_uncertainty, by_point.refined_uncertainty, atol=1e-3)
    assert (by_voxel.labels != by_voxel.unrefined).mean() > 0.02


def test_tiles_side_by_side_give_the_labels_of_one_after_the_other() -> None:
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(predict("lean_s4", (32, 32, 32), mirror=("x",)))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(made[0].labels, made[1].labels)
    np.testing.assert_allclose(made[0].refined_uncertainty, made[1].refined_uncertainty, atol=1e-3)


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


@pytest.mark.parametrize("mirror", [(), ("x", "y")])
@pytest.mark.parametrize("arm", ["lean_s4", "pointrend_s2"])
def test_kept_features_take_at_most_what_coarse_logits_save(
    arm: str, mirror: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that refined tiles take no more than the blended logits of a dense network on the same volume."""
    monkeypatch.setattr("vnet.inference.segment.KEPT_BYTES", 0)
    kept: list[int] = []
    plain = TiledNetwork.coarse

    def measured(self: TiledNetwork) -> torch.Tensor:
        result = plain(self)
        kept.append(sum(part.numel() * 4 for one in self.kept.values() for part in one.parts.values()))
        return result

    monkeypatch.setattr(TiledNetwork, "coarse", measured)
    predict(arm, (32, 32, 32), mirror=mirror)
    stride = int(arm[-1])
    canvas = [-(-n // stride) * stride for n in SIZE]
    assert 0 < kept[0] <= 4 * (3 + 1) * np.prod(canvas) * (1 - 1 / stride**3)


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


TILE = (32, 16, 48)
STRIDES = ((1, 1, 1), (4, 2, 8))


def maps() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(1, 3, *TILE, generator=generator)
    coarse = torch.randn(1, 5, 8, 8, 6, generator=generator)
    return {"fine": fine, "coarse": coarse}


def whole() -> Box:
    z, y, x = (slice(0, n) for n in TILE)
    return z, y, x


def coarse_logits(surface_at: int) -> torch.Tensor:
    """(1, 2, 8, 8, 6) logits whose sign changes at a coarse plane of the first axis, ever surer away from it."""
    margin = (torch.arange(8) - surface_at + 0.5).view(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 6)
    return torch.cat([torch.zeros(1, 1, 8, 8, 6), margin], dim=1)


def test_blocks_divide_the_tile_and_its_maps() -> None:
    grid = BlockGrid.of(TILE, STRIDES)
    assert (grid.block, grid.counts, grid.reach) == ((4, 4, 8), (8, 4, 6), (4, 2, 8))
    view = grid.view(maps()["coarse"])
    assert view.shape == (8, 4, 6, 5, 1, 2, 1)
    torch.testing.assert_close(view[1, 3, 5], maps()["coarse"][0, :, 1:2, 6:8, 5:6])
    # no block of 4 divides 6, so the axis is one block; a stride of 16 needs blocks of 16
    assert BlockGrid.of((6, 16, 32), [(1, 4, 16)]).block == (6, 4, 16)


@given(count=st.integers(0, 9), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_points_read_the_same_from_the_blocks_that_they_touch(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid, features = BlockGrid.of(TILE, STRIDES), maps()
    points = torch.rand(count, 3, generator=generator)
    points = torch.where(torch.rand(count, 3, generator=generator) < 0.2, points.round(), points)  # faces of the tile
    mask = grid.touched(points)
    parts = {name: grid.view(map_)[mask] for name, map_ in features.items()}
    kept = KeptFeatures(grid, mask, parts, {name: map_.shape for name, map_ in features.items()})
    assert kept.cover(points)
    got = kept.maps()
    for name, map_ in features.items():
        assert torch.equal(read_at(got[name], points[None]), read_at(map_, points[None])), name
    if count:
        assert not KeptFeatures(grid, torch.zeros_like(mask), {}, {}).cover(points)


def test_voxel_centres_read_the_same_by_index() -> None:
    grid, features = BlockGrid.of(TILE, STRIDES), maps()
    voxels = torch.tensor([[0, 0, 0], [7, 8, 47], [31, 15, 23]])
    points = (voxels + 0.5) / torch.tensor(TILE)
    mask = grid.touched(points)
    parts = {name: grid.view(map_)[mask] for name, map_ in features.items()}
    got = KeptFeatures(grid, mask, parts, {name: map_.shape for name, map_ in features.items()}).maps()
    read = [read_at(fine, points[None], TILE) for fine in (got["fine"], features["fine"])]
    assert torch.equal(*read)


def test_doubt_is_0_where_a_surface_passes_and_falls_with_the_margin() -> None:
    # a coarse plane a block; the surface lies between planes 1 and 2, next to which lie 0 and 3
    doubt = BlockGrid.of(TILE, STRIDES).doubt(coarse_logits(2))
    assert doubt.shape == (8, 4, 6)
    assert doubt[:4].eq(0).all()
    # next to block 7 lies plane 6, with a margin of 4.5
    assert doubt[7].eq(-4.5).all()


def test_the_most_doubtful_blocks_are_kept_as_far_as_there_is_room() -> None:
    grid, features = BlockGrid.of(TILE, STRIDES), maps()
    block_bytes = 4 * (3 * 4 * 4 * 8 + 5 * 1 * 2 * 1)
    kept = keep_blocks(grid, whole(), coarse_logits(2), features, room=100 * block_bytes)
    assert kept.mask.sum() == 100
    assert kept.mask[:4].all()
    assert sum(part.numel() * 4 for part in kept.parts.values()) == 100 * block_bytes
    everything = keep_blocks(grid, whole(), coarse_logits(2), features, room=10**9)
    assert everything.mask.all()
    for name, map_ in everything.maps().items():
        assert torch.equal(map_, features[name])
    assert not keep_blocks(grid, whole(), coarse_logits(2), features, room=0).mask.any()


def test_sure_blocks_and_those_outside_of_the_box_are_left_out() -> None:
    grid, features = BlockGrid.of(TILE, STRIDES), maps()
    kept = keep_blocks(grid, whole(), coarse_logits(2), features, room=10**9, max_margin=1.0)
    assert kept.mask[:5].all()
    assert not kept.mask[5:].any()  # their margins of 2.5 and more are over twice 1
    box = (slice(8, 20), slice(0, 16), slice(20, 28))
    kept = keep_blocks(grid, box, coarse_logits(2), features, room=10**9)
    # reach is 4 voxels along z and 8 along x: from 4 to 24, and from 12 to 36
    expected = torch.zeros(8, 4, 6, dtype=torch.bool)
    expected[1:6, :, 1:5] = True
    assert torch.equal(kept.mask, expected)


@pytest.mark.parametrize(
    ("stride", "coarse"), [((1, 1, 1), 8 * 12 * 16), ((2, 2, 2), 4 * 6 * 8), ((1, 2, 4), 8 * 6 * 4)]
)
def test_a_coarse_grid_saves_logits_and_weights_in_float32(stride: Axes, coarse: int) -> None:
    assert saved_bytes(3, (8, 12, 16), stride) == 4 * (3 + 1) * (8 * 12 * 16 - coarse)


EVERYWHERE = ["--points.refine_fraction", "1", "--points.max_margin", "null"]


def test_the_margin_holds_99_of_100_changes() -> None:
    margins = np.random.default_rng(0).permutation(np.arange(1, 101)).astype(np.float32)
    assert calibrated_margin([margins[:30], margins[30:]]) == 100  # of 100 changes, 99 % are within the 100th at least
    assert calibrated_margin([np.arange(1, 201, dtype=np.float32)]) == 199
    assert share_within([margins], 99) == pytest.approx(0.99)
    assert share_within([margins[:0], margins], 40.5) == pytest.approx(0.4)


def test_without_a_change_nothing_is_asked() -> None:
    assert calibrated_margin([]) == calibrated_margin([np.zeros(0, np.float32)]) == 0
    assert share_within([], 1.0) is None


@pytest.fixture
def trained(tiny: list[str]) -> Path:
    words = ["--arm", "pointrend_s2", "--points.max_margin", "auto", "--points.refine_fraction", "1"]
    return train_run(load_config([*tiny, *words])).folder


def test_margins_are_those_of_the_labels_that_asking_everywhere_changes(trained: Path, phantoms: Path) -> None:
    run, config = open_run(trained)
    model = load_model(run, config, "last")
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    found = changed_margins(model.model, volume, model.preprocessing, config, torch.Generator())
    everywhere = Predictor(trained, overrides=EVERYWHERE).predict(volume)
    changed = everywhere.labels.ravel() != everywhere.unrefined.ravel()
    np.testing.assert_allclose(found, -everywhere.uncertainty[changed], atol=1e-4)
    assert len(found) > 50


def test_a_large_volume_is_asked_at_random_voxels(
    trained: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "VOXELS", 3000)
    run, config = open_run(trained)
    model = load_model(run, config, "last")
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    some = [changed_margins(model.model, volume, model.preprocessing, config, one) for one in generators]
    np.testing.assert_array_equal(some[0], some[1])
    assert len(some[0]) != len(some[2]) or (some[0] != some[2]).any()
    everywhere = Predictor(trained, overrides=EVERYWHERE).predict(volume)
    rate = (everywhere.labels != everywhere.unrefined).mean()
    assert len(some[0]) == pytest.approx(3000 * rate, rel=0.4)


def test_a_training_measures_the_margin_and_prediction_obeys_it(
    trained: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = json.loads((trained / "run.json").read_text())
    margin = info["max_margin"]
    assert read_checkpoint(trained / "checkpoints/last.ckpt")["max_margin"] == pytest.approx(margin, abs=1e-5)
    assert info["changes_within_margin_training"] >= 0.99
    assert 0.5 < info["changes_within_margin_validation"] <= 1
    predictor = Predictor(trained)
    asked = changed = held = 0
    for case in sorted((phantoms / "imagesTr").iterdir()):
        volume = read_image([case])
        auto = predictor.predict(volume)
        assert (-auto.uncertainty <= margin + 1e-4).all()
        everywhere = Predictor(trained, overrides=EVERYWHERE).predict(volume)
        changes = everywhere.labels != everywhere.unrefined
        asked += len(auto.index)
        changed += changes.sum()
        held += (auto.labels != auto.unrefined).sum()
    assert held >= 0.97 * changed
    assert asked < everywhere.labels.size * 6


def test_the_cap_still_holds(trained: Path, phantoms: Path) -> None:
    volume = read_image([sorted((phantoms / "imagesTr").iterdir())[0]])
    capped = Predictor(trained, overrides=["--points.refine_fraction", "0.01"]).predict(volume)
    assert len(capped.index) == round(0.01 * capped.labels.size)


def test_several_models_take_the_largest_margin() -> None:
    class One:
        def __init__(self, margin: float | None, head: object = True) -> None:
            self.max_margin, self.head = margin, head

    auto, fixed = (load_config(["--points.max_margin", word]) for word in ("auto", "0.5"))
    assert largest_margin([One(1.0), One(3.0), One(None, head=None)], auto) == 3.0  # type: ignore[list-item]
    assert largest_margin([One(1.0), One(None)], auto) is None  # type: ignore[list-item]
    assert largest_margin([One(1.0)], fixed) == 0.5  # type: ignore[list-item]
    assert largest_margin([One(1.0)], load_config([])) is None  # type: ignore[list-item]


def test_a_margin_is_a_number_auto_or_null() -> None:
    assert load_config(["--points.max_margin", "auto"]).hash("d") != load_config([]).hash("d")
    with pytest.raises(InputError, match="points.max_margin must be .*, got often"):
        load_config(["--points.max_margin", "often"])
    with pytest.raises(InputError, match="points.max_margin must be 0 or more, auto, or null, got -1"):
        load_config(["--points.max_margin", "-1"])
