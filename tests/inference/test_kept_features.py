"""Blocks of features: what is read from them, which are kept, how much they take."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointrend.reading import read_at
from pointrend.windows import read_window
from vnet.inference.kept_features import BlockGrid, KeptFeatures, dense_bytes, keep_blocks
from vnet.inference.tiling import Box

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
    grid = BlockGrid.of(TILE, STRIDES, 3)
    assert (grid.block, grid.counts, grid.reach) == ((8, 8, 8), (4, 2, 6), (4, 2, 8))
    view = grid.view(maps()["coarse"])
    assert view.shape == (4, 2, 6, 5, 2, 4, 1)
    torch.testing.assert_close(view[1, 0, 5], maps()["coarse"][0, :, 2:4, 0:4, 5:6])
    # no block of 8 divides 12, so the axis is one block; a stride of 16 needs blocks of 16
    assert BlockGrid.of((12, 16, 32), [(4, 4, 16)], 1).block == (12, 8, 16)


@given(count=st.integers(0, 9), seed=st.integers(0, 10**6), window=st.sampled_from([1, 3, 5]))
@settings(deadline=None, max_examples=40)
def test_points_read_the_same_from_the_blocks_that_they_touch(count: int, seed: int, window: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grid, features = BlockGrid.of(TILE, STRIDES, window), maps()
    points = torch.rand(count, 3, generator=generator)
    points = torch.where(torch.rand(count, 3, generator=generator) < 0.2, points.round(), points)  # faces of the tile
    mask = grid.touched(points)
    parts = {name: grid.view(map_)[mask] for name, map_ in features.items()}
    kept = KeptFeatures(grid, mask, parts, {name: map_.shape for name, map_ in features.items()})
    assert kept.cover(points)
    got = kept.maps()
    fine = [read_window(which["fine"], points[None], window) for which in (got, features)]
    assert torch.equal(*fine)
    assert torch.equal(read_at(got["coarse"], points[None]), read_at(features["coarse"], points[None]))
    if count:
        assert not KeptFeatures(grid, torch.zeros_like(mask), {}, {}).cover(points)


def test_voxel_centres_read_the_same_by_index() -> None:
    grid, features = BlockGrid.of(TILE, STRIDES, 3), maps()
    voxels = torch.tensor([[0, 0, 0], [7, 8, 47], [31, 15, 23]])
    points = (voxels + 0.5) / torch.tensor(TILE)
    mask = grid.touched(points)
    parts = {name: grid.view(map_)[mask] for name, map_ in features.items()}
    got = KeptFeatures(grid, mask, parts, {name: map_.shape for name, map_ in features.items()}).maps()
    read = [read_window(fine, points[None], 3, TILE) for fine in (got["fine"], features["fine"])]
    assert torch.equal(*read)


def test_doubt_is_0_where_a_surface_passes_and_falls_with_the_margin() -> None:
    # two coarse planes a block; the surface lies between planes 1 and 2, so that blocks 0 and 1 touch it
    doubt = BlockGrid.of(TILE, STRIDES, 3).doubt(coarse_logits(2))
    assert doubt.shape == (4, 2, 6)
    assert doubt[:2].eq(0).all()
    # block 3 holds planes 6 and 7; the next plane, 5, has a margin of 3.5
    assert doubt[3].eq(-3.5).all()


def test_the_most_doubtful_blocks_are_kept_as_far_as_there_is_room() -> None:
    grid, features = BlockGrid.of(TILE, STRIDES, 3), maps()
    block_bytes = 4 * (3 * 8**3 + 5 * 2 * 4 * 1)
    kept = keep_blocks(grid, whole(), coarse_logits(2), features, room=25 * block_bytes)
    assert kept.mask.sum() == 25
    assert kept.mask[:2].all()
    assert sum(part.numel() * 4 for part in kept.parts.values()) == 25 * block_bytes
    everything = keep_blocks(grid, whole(), coarse_logits(2), features, room=10**9)
    assert everything.mask.all()
    for name, map_ in everything.maps().items():
        assert torch.equal(map_, features[name])
    assert not keep_blocks(grid, whole(), coarse_logits(2), features, room=0).mask.any()


def test_sure_blocks_and_those_outside_of_the_box_are_left_out() -> None:
    grid, features = BlockGrid.of(TILE, STRIDES, 3), maps()
    kept = keep_blocks(grid, whole(), coarse_logits(2), features, room=10**9, max_margin=1.0)
    assert kept.mask[:3].all()
    assert not kept.mask[3].any()  # its margin of 3.5 is more than twice 1
    box = (slice(8, 20), slice(0, 16), slice(20, 28))
    kept = keep_blocks(grid, box, coarse_logits(2), features, room=10**9)
    # reach is 4 voxels along z and 8 along x: from 4 to 24, and from 12 to 36
    expected = torch.zeros(4, 2, 6, dtype=torch.bool)
    expected[0:3, :, 1:5] = True
    assert torch.equal(kept.mask, expected)


@pytest.mark.parametrize(("classes", "canvas"), [(3, (4, 5, 6)), (25, (2, 3, 7))])
def test_a_dense_network_blends_logits_and_weights_in_float32(classes: int, canvas: tuple[int, int, int]) -> None:
    assert dense_bytes(classes, canvas) == 4 * math.prod(canvas) * classes + 4 * math.prod(canvas)
