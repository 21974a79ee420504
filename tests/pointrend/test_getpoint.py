"""`getpoint`: the meaning of 2020 without its faults, the same on every path, for any number of axes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointrend import getpoint


def brute_force_mixed(mask: np.ndarray, element: np.ndarray, radius: int) -> bool:
    inside = np.ones(mask.shape, dtype=bool)
    for axis, index in enumerate(np.indices(mask.shape)):
        inside &= abs(index - element[axis]) <= radius
    return len(np.unique(mask[inside])) > 1


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    shape = draw(st.lists(st.integers(1, 11), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([bool, np.uint8, np.float16, ">i4"]))
    threshold = draw(st.floats(0.0, 0.3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return (random.random(shape) < threshold).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    mask=masks(),
    k=st.floats(0, 3),
    beta=st.floats(0, 1),
    radius=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
def test_both_paths_give_the_same_points(mask, k, beta, radius, seed):
    fast = getpoint(mask, k, beta, nearest_neighbor=radius, rng=seed)
    direct = getpoint(mask, k, beta, nearest_neighbor=radius, new_if_near=False, rng=seed)
    np.testing.assert_array_equal(fast, direct)
    assert (fast >= 0).all()
    assert (fast < mask.shape).all()


@pytest.mark.parametrize("shape", [(31, 37), (11, 12, 13), (400,)])
@pytest.mark.parametrize("density", [0.002, 0.3, 6.0])  # scattered windows, and the table of all windows
def test_candidates_are_kept_by_the_definition(shape, density):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[tuple(slice(n // 3, n // 2) for n in shape)] = 3
    points = getpoint(mask, density, 1.0, nearest_neighbor=2, rng=5)
    drawn = np.random.default_rng(5).random((int(density * mask.size), len(shape))) * shape
    expected = [p for p in drawn if brute_force_mixed(mask, p.astype(int), 2)]
    np.testing.assert_array_equal(points, np.array(expected).reshape(-1, len(shape)))


def test_the_window_is_centred_and_two_radii_and_one_wide():
    mask = np.zeros((1, 20), dtype=np.uint8)
    mask[0, 10:] = 1
    points = getpoint(mask, 200, 1, nearest_neighbor=3, rng=0)
    # elements 7..9 see element 10, elements 10..12 see element 9
    assert set(points[:, 1].astype(int)) == {7, 8, 9, 10, 11, 12}


def test_last_rows_and_columns_are_drawn_and_uniformly_so():
    points = getpoint(np.zeros((4, 5), dtype=bool), 1000, 0, rng=1)
    counts = np.zeros((4, 5))
    np.add.at(counts, tuple(points.astype(int).T), 1)
    assert points.shape == (20_000, 2)
    # binomial with mean 1000 and standard deviation 31
    assert abs(counts - 1000).max() < 160


def test_counts_are_the_truncated_products():
    mask = np.zeros((7, 9), dtype=bool)
    assert len(getpoint(mask, 1.3, 0, rng=0)) == int(1.3 * 63)
    assert len(getpoint(mask, 1.3, 0.75, rng=0)) == int(0.25 * 1.3 * 63)  # one value: no candidate stays
    assert len(getpoint(mask, 1.3, 1.0, rng=0)) == 0
    assert len(getpoint(np.indices((7, 9)).sum(0) % 2, 1.3, 0.75, rng=0)) == int(0.75 * 81.9) + int(0.25 * 81.9)


def test_uniform_points_follow_the_candidates():
    mask = np.zeros((6, 7), dtype=np.uint8)
    mask[2:4, 3:5] = 1
    random = np.random.default_rng(3)
    random.random((int(0.5 * 10 * 42), 2))
    expected = random.random((int(0.5 * 10 * 42), 2)) * mask.shape
    np.testing.assert_array_equal(getpoint(mask, 10, 0.5, rng=3)[-210:], expected)


def test_inference_returns_the_indices_of_positive_elements():
    mask = np.array([[0, 2, 0], [-1, 0, 7]])
    points = getpoint(mask, 1, 0.5, training=False)
    assert points.tolist() == [[0, 1], [1, 2]]
    assert points.dtype == np.int64
    assert getpoint(np.zeros((3, 4, 5)), 1, 0.5, training=False).shape == (0, 3)


def test_result_unpacks_by_axis():
    rows, columns = zip(*getpoint(np.eye(8), 2, 0.9, rng=0), strict=True)
    assert len(rows) == len(columns) > 0
    assert max(rows) < 8


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 3, 5)])
def test_masks_without_elements_have_no_points(shape):
    assert getpoint(np.zeros(shape), 5, 0.5, rng=0).shape == (0, len(shape))


def test_a_generator_is_advanced_and_a_seed_repeats():
    mask, generator = np.eye(9), np.random.default_rng(0)
    first, second = (getpoint(mask, 1, 0.5, rng=generator) for _ in range(2))
    np.testing.assert_array_equal(first, getpoint(mask, 1, 0.5, rng=0))
    assert first.shape != second.shape or (first != second).any()


def test_minus_zero_is_zero():
    assert len(getpoint(np.array([[0.0, -0.0], [-0.0, 0.0]]), 50, 1, nearest_neighbor=1, rng=0)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta": 1.5}, ValueError, r"beta must lie in \[0, 1\], got 1.5"),
        ({"beta": float("nan")}, ValueError, r"beta must lie in \[0, 1\], got nan"),
        ({"beta": "half"}, TypeError, "beta must be a number, got 'half'"),
        ({"k": -1}, ValueError, "k must be finite and at least 0, got -1"),
        ({"k": float("inf")}, ValueError, "k must be finite and at least 0, got inf"),
        ({"k": True}, TypeError, "k must be a number, got True"),
        ({"nearest_neighbor": -2}, ValueError, "nearest_neighbor must be at least 0, got -2"),
        ({"nearest_neighbor": 1.5}, TypeError, "nearest_neighbor must be a whole number, got 1.5"),
        ({"mask_img": np.array(3)}, ValueError, "mask_img must have at least one axis"),
        ({"mask_img": np.array([0.0, np.nan])}, ValueError, "mask_img must be finite"),
        ({"mask_img": np.array(["a"])}, TypeError, "mask_img must be boolean, integer or floating point, got dtype"),
        ({"mask_img": np.array([1j])}, TypeError, "got dtype complex128"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        getpoint(**({"mask_img": np.eye(4), "k": 1, "beta": 0.5} | arguments))
