"""Blocks of features: what is read from them, which are kept, how much they take."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointrend.reading import read_at
from vnet.core.config import Axes
from vnet.inference.kept_features import BlockGrid, KeptFeatures, keep_blocks, saved_bytes
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
