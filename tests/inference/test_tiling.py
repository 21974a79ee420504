"""Tiles: full cover, no seams, and the tile that a point is read from."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vnet.inference.tiling import Blend, TileGrid, gaussian_window, lay_tiles

SIZES = st.tuples(*[st.integers(1, 70)] * 3)
TILES = st.tuples(*[st.integers(1, 6).map(lambda n: 4 * n)] * 3)
STRIDES = st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 4, 4), (1, 2, 4)])


def owners(grid: TileGrid, points: torch.Tensor) -> torch.Tensor:
    """(N,) number of the tile that points (N, 3) of the canvas's unit cube are nearest to."""
    number = torch.zeros(len(points), dtype=torch.int64)
    for axis, starts in enumerate(grid.starts):
        number = number * len(starts) + grid.nearest(axis, points[:, axis].contiguous() * grid.canvas[axis])
    return number


@given(size=SIZES, tile=TILES, stride=STRIDES, overlap=st.sampled_from([0.0, 0.25, 0.5]))
@settings(deadline=None, max_examples=60)
def test_blending_an_identity_network_gives_the_volume_back(
    size: tuple[int, ...], tile: tuple[int, int, int], stride: tuple[int, int, int], overlap: float
) -> None:
    grid = lay_tiles(size, tile, overlap=overlap, align=stride)
    assert all(c >= n and c % s == 0 for c, n, s in zip(grid.canvas, size, stride, strict=True))
    blend = Blend(classes=2, grid=grid, stride=stride)
    coarse = torch.randn(2, *blend.size)
    for corner in grid.corners():
        here = [slice(c // s, (c + t) // s) for c, t, s in zip(corner, tile, stride, strict=True)]
        blend.add(coarse[(slice(None), *here)], corner)
    torch.testing.assert_close(blend.result(), coarse)


@given(size=SIZES, tile=TILES, stride=STRIDES)
@settings(deadline=None, max_examples=60)
def test_a_point_belongs_to_the_tile_with_the_nearest_centre(
    size: tuple[int, ...], tile: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    grid = lay_tiles(size, tile, overlap=0.25, align=stride)
    points = torch.rand(50, 3)
    corners = torch.tensor(grid.corners())
    voxels = points * torch.tensor(grid.canvas)
    distance = (voxels[:, None] - corners - torch.tensor(tile) / 2).abs()  # (N, tiles, 3)
    owner = owners(grid, points)
    chosen = distance[torch.arange(50), owner]
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-3, rtol=1e-4)
    for number, corner in enumerate(grid.corners()):
        local = grid.to_tile(points[owner == number], corner)
        assert ((local > -1e-5) & (local < 1 + 1e-5)).all()
        for axis, part in enumerate(grid.owned(number)):
            place = local[:, axis] * tile[axis]
            assert ((place > part.start - 1e-3) & (place < part.stop + 1e-3)).all()


def test_owned_parts_leave_out_the_overlap() -> None:
    grid = lay_tiles((16, 16, 100), (16, 16, 40), overlap=0.5, align=(2, 2, 2))
    assert grid.starts[2] == (0, 20, 40, 60)
    # borders lie 10 voxels within the tiles
    assert [grid.owned(number)[2] for number in range(4)] == [
        slice(0, 30),
        slice(10, 30),
        slice(10, 30),
        slice(10, 40),
    ]


def test_neighbours_overlap_as_asked() -> None:
    grid = lay_tiles((100, 100, 100), (40, 40, 40), overlap=0.5, align=(2, 2, 2))
    starts = torch.tensor(grid.starts[0])
    assert starts[0] == 0
    assert starts[-1] == 60
    assert (starts.diff() <= 20).all()


def test_a_small_volume_is_one_tile() -> None:
    grid = lay_tiles((35, 51, 35), (48, 64, 48), overlap=0.25, align=(2, 2, 2))
    assert grid.canvas == (48, 64, 48)
    assert grid.corners() == [(0, 0, 0)]


def test_the_window_is_highest_in_the_middle_and_the_same_from_both_sides() -> None:
    window = gaussian_window((5, 6, 7))
    assert window.argmax() in [(2 * 6 + 2) * 7 + 3, (2 * 6 + 3) * 7 + 3]
    torch.testing.assert_close(window, window.flip(0, 1, 2))
    assert float(window.min()) >= 1e-3
