"""Unit cube, voxel index and interpolation tables: against hand-worked values and torch's own interpolation."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend.coordinates import (
    check_extent,
    check_size,
    extent_centres,
    flat_index,
    interpolation_table,
    to_grid,
    voxel_centres,
    whole_grid,
)


def test_centres_of_a_small_grid_by_hand():
    # voxel (1, 2, 0) of a (2, 3, 5) grid
    index = torch.tensor([1 * 15 + 2 * 5 + 0])
    torch.testing.assert_close(voxel_centres(index, (2, 3, 5)), torch.tensor([[0.75, 5 / 6, 0.1]]))


@pytest.mark.parametrize("size", [(3, 4), (3, 4, 5), (1, 7, 2), (64, 1, 3)])
def test_flat_index_inverts_voxel_centres(size):
    index = torch.arange(int(np.prod(size))).view(-1, size[-1])  # any shape is kept
    centres = voxel_centres(index, size)
    assert centres.shape == (*index.shape, len(size))
    assert torch.equal(flat_index(centres, size), index)


def test_centres_know_the_depth_of_large_volumes():
    # ports that reduce the index modulo width * height first put every voxel in slice 0
    size = (321, 512, 512)
    index = torch.tensor([320 * 512 * 512 + 3 * 512 + 500])
    assert torch.equal(flat_index(voxel_centres(index, size), size), index)
    assert voxel_centres(index, size)[0, 0] == pytest.approx(320.5 / 321)
    assert voxel_centres(index, size)[0, 1] == pytest.approx(3.5 / 512)


def test_points_on_and_beyond_the_faces_belong_to_the_outermost_voxels():
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-0.2, 1.3], [0.5, 0.25]])
    assert flat_index(points, (3, 4)).tolist() == [0, 11, 3, 1 * 4 + 1]


def test_the_grid_is_flipped_and_spans_minus_one_to_one():
    assert to_grid(torch.tensor([[0.0, 0.5, 1.0]])).tolist() == [[1.0, 0.0, -1.0]]


def test_flat_index_refuses_points_of_another_dimension():
    with pytest.raises(ValueError, match=r"points must be \(\.\.\., 3\) for a grid of \(2, 3, 4\), got \(5, 2\)"):
        flat_index(torch.zeros(5, 2), (2, 3, 4))


def test_extent_scales_the_centres():
    index = torch.tensor([3])
    plain, part = voxel_centres(index, (2, 2)), extent_centres(index, (2, 2), (0.5, 1.0))
    torch.testing.assert_close(part, plain * torch.tensor([0.5, 1.0]))
    assert torch.equal(extent_centres(index, (2, 2), (1.0, 1.0)), plain)


def test_a_part_of_a_grid_has_the_voxels_of_the_whole():
    assert whole_grid((5, 7, 10), (5 / 6, 7 / 8, 1.0)) == (6, 8, 10)
    assert whole_grid((301, 3), (301 / 336, 3 / 7)) == (336, 7)
    assert whole_grid((5, 7), (0.5, 0.9)) is None
    index = torch.arange(5 * 7)
    points = extent_centres(index, (5, 7), (5 / 6, 7 / 8))
    rows, columns = index // 7, index % 7
    assert torch.equal(flat_index(points, (6, 8)), rows * 8 + columns)


def test_a_table_by_hand():
    # 2 voxels to 4: targets lie at -0.25, 0.25, 0.75, 1.25 of the source
    lower, upper, weight = interpolation_table(2, 4)
    assert lower.tolist() == [0, 0, 0, 1]
    assert upper.tolist() == [1, 1, 1, 1]
    assert weight.tolist() == [0.0, 0.25, 0.75, 0.25]
    assert (lower.dtype, upper.dtype, weight.dtype) == (np.int32, np.int32, np.float32)


def combed(source: int, target: int, align_corners: bool) -> np.ndarray:
    """A comb of zeros and ones interpolated by torch: shows the weights themselves, as neighbours differ."""
    comb = (torch.arange(source) % 2).float()[None, None, None, None]
    return F.interpolate(comb, (1, 1, target), mode="trilinear", align_corners=align_corners).numpy()[0, 0, 0, 0]


# 2 voxels to 5: rounded once, target 1 lies at 0.1; torch without fused multiply-adds rounds twice
TORCH_FUSES = combed(2, 5, False)[1] == np.float32(np.float64(np.float32(0.4)) * 1.5 - 0.5)


@settings(deadline=None, max_examples=200)
@given(source=st.integers(1, 300), target=st.integers(1, 700), align_corners=st.booleans())
def test_a_table_has_the_bits_of_torch(source, target, align_corners):
    lower, upper, weight = interpolation_table(source, target, align_corners=align_corners)
    values = (np.arange(source) % 2).astype(np.float32)
    expected = (np.float32(1) - weight) * values[lower] + weight * values[upper]
    # one more rounding of a position below `source`
    atol = 0 if TORCH_FUSES else 2 * np.finfo(np.float32).eps * source
    np.testing.assert_allclose(expected, combed(source, target, align_corners), rtol=0, atol=atol)
    assert (np.diff(lower) >= 0).all()
    assert (lower <= upper).all()
    assert upper.max() < source


@settings(deadline=None, max_examples=100)
@given(source=st.integers(1, 300), target=st.integers(1, 700))
def test_positions_are_rounded_once(source, target):
    lower, _, weight = interpolation_table(source, target)
    scale = Fraction(float(np.float32(source) / np.float32(target)))
    for i in range(0, target, 7):
        exact = max(scale * (2 * i + 1) / 2 - Fraction(1, 2), Fraction(0))
        position = np.float32(float(exact))  # exact in float64, see `interpolation_table`
        if source != target:
            assert lower[i] == min(int(position), source - 1)
            assert weight[i] == min(position - np.float32(lower[i]), np.float32(1))


@settings(deadline=None, max_examples=50)
@given(source=st.integers(1, 12), stride=st.integers(1, 4), cut=st.integers(0, 20))
def test_an_extent_is_interpolation_of_the_whole_then_a_cut(source, stride, cut):
    canvas = source * stride
    kept = max(canvas - cut, 1)
    whole, part = interpolation_table(source, canvas), interpolation_table(source, kept, extent=kept / canvas)
    positions = [lower[:kept] + weight[:kept] for lower, _, weight in (whole, part)]
    np.testing.assert_allclose(*positions, atol=1e-6)
    assert (part[1] <= source - 1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": 0, "target": 3}, "source and target must be at least 1, got 0 and 3"),
        ({"source": 3, "target": 3, "extent": 1.5}, r"extent must lie in \(0, 1\], got 1.5"),
        ({"source": 3, "target": 3, "extent": float("nan")}, r"extent must lie in \(0, 1\], got nan"),
        ({"source": 3, "target": 3, "extent": 0.5, "align_corners": True}, "align_corners=True cannot be combined"),
    ],
)
def test_tables_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        interpolation_table(**arguments)


def test_sizes_and_extents_are_checked():
    assert check_size([np.int64(3), 4], 2) == (3, 4)
    assert check_extent(None, 3) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"size must be 3 whole numbers of at least 1, got \(3, 4\)"):
        check_size((3, 4), 3)
    with pytest.raises(ValueError, match=r"size must be 2 whole numbers of at least 1, got \(3, 0\)"):
        check_size((3, 0), 2)
    with pytest.raises(ValueError, match=r"extent must be 2 numbers in \(0, 1\], got \(0.5, 0\)"):
        check_extent((0.5, 0), 2)
