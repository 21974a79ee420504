"""Views of a volume: one resampling, in mm."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vnet.data.augmentation import View, draw_matrix, extract_patch, pad_to_patch, rotation, source_box, vary_intensity

PATCH = (6, 8, 10)


def ramp(size):
    z, y, x = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    return torch.from_numpy((100 * z + 10 * y + x).astype(np.float32))[None]


def see(image, label, view, patch=PATCH):
    """Read only the box a view asks for, as the batches do."""
    box = source_box(view, patch, label.shape)
    return extract_patch(image[(slice(None), *box)], label[box], [part.start for part in box], view, patch)


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(*[st.integers(1, 14)] * 3),
    shares=st.tuples(*[st.floats(0, 1)] * 3),
    flips=st.sets(st.integers(0, 2)),
)
def test_an_upright_view_is_a_cut_with_zeros_around(size, shares, flips):
    image, label = ramp(size) + 1, torch.ones(size, dtype=torch.int32)
    rooms = [n - p for n, p in zip(size, PATCH, strict=True)]
    start = tuple(min(r, 0) + round(s * abs(r)) for r, s in zip(rooms, shares, strict=True))
    shown, marked = see(image, label, View(start, None, tuple(sorted(flips))))
    padded = np.pad(image[0].numpy(), [(p, p) for p in PATCH])
    wanted = padded[tuple(slice(p + s, 2 * p + s) for p, s in zip(PATCH, start, strict=True))]
    wanted = np.flip(wanted, tuple(sorted(flips)))
    np.testing.assert_array_equal(shown[0].numpy(), wanted)
    np.testing.assert_array_equal(marked.numpy(), wanted > 0)
    assert marked.dtype == torch.int64


@settings(deadline=None, max_examples=40)
@given(
    start=st.tuples(st.integers(-3, 9), st.integers(-3, 9), st.integers(-3, 9)),
    seed=st.integers(0, 1000),
)
def test_a_turned_view_reads_a_ramp_where_the_matrix_says(start, seed):
    size, rng = (14, 15, 16), np.random.default_rng(seed)
    matrix = np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))
    shown, _ = see(ramp(size), torch.ones(size, dtype=torch.int32), View(start, matrix, ()))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in PATCH), indexing="ij"), -1)
    middle = (np.array(PATCH) - 1) / 2
    source = (index - middle) @ matrix.T + middle + start
    inside = ((source >= 0) & (source <= np.array(size) - 1)).all(-1)
    expected = source @ [100, 10, 1]
    np.testing.assert_allclose(shown[0].numpy()[inside], expected[inside], atol=0.02)


def test_a_label_turns_with_its_image():
    size = (12, 14, 16)
    label = torch.zeros(size, dtype=torch.int32)
    label[4:9, 3:10, 5:13] = 3
    matrix = rotation(0, 0.2) @ rotation(2, -0.15) / 1.1
    shown, marked = see(label[None].float(), label, View((2, 2, 2), matrix, (1,)))
    # linear shares of a box are products of one share per axis; the nearest voxel lies inside if all are above 1/2
    assert not ((shown[0] > 3 / 2 + 1e-3) & (marked == 0)).any()
    assert not ((shown[0] < 3 / 8 - 1e-3) & (marked == 3)).any()
    assert set(marked.unique().tolist()) == {0, 3}


def test_a_quarter_turn_moves_voxels_as_expected():
    image = ramp((5, 5, 5))
    shown, _ = see(image, image[0].int(), View((0, 0, 0), rotation(0, np.pi / 2), ()), (5, 5, 5))
    expected = np.rot90(image[0].numpy(), -1, axes=(1, 2))
    np.testing.assert_allclose(shown[0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 1.0)])
def test_rotation_and_scale_keep_angles_in_mm(spacing):
    drawn = [draw_matrix(np.random.default_rng(seed), spacing) for seed in range(200)]
    turned = [matrix for matrix in drawn if matrix is not None]
    assert 50 < len(turned) < 110  # 40 %
    for matrix in turned:
        in_mm = np.diag(spacing) @ matrix @ np.diag(1 / np.array(spacing))
        gram = in_mm @ in_mm.T
        scale = np.sqrt(gram[0, 0])
        assert 1 / 1.21 < scale < 1.21
        np.testing.assert_allclose(gram, np.eye(3) * gram[0, 0], atol=1e-9)


def test_the_same_count_of_numbers_is_drawn_whether_turned_or_not():
    after = {}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        after[seed] = draw_matrix(rng, (1, 1, 1)) is None, rng.bit_generator.state["state"]["state"]
        plain = np.random.default_rng(seed)
        plain.random(5)
        assert plain.bit_generator.state["state"]["state"] == after[seed][1]
    assert {turned for turned, _ in after.values()} == {True, False}


def test_intensities_are_a_function_of_the_seed_and_leave_their_input_alone():
    image = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    for seed in range(6):
        once, again = vary_intensity(image, seed), vary_intensity(image, seed)
        assert type(once) is torch.Tensor
        assert once.dtype == torch.float32
        torch.testing.assert_close(once, again, rtol=0, atol=0)
        assert torch.isfinite(once).all()
    torch.testing.assert_close(image, before, rtol=0, atol=0)
    changed = [not torch.equal(vary_intensity(image, seed), image) for seed in range(40)]  # about 27
    assert 15 < sum(changed) < 38


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_a_constant_image_stays_finite(value):
    image = torch.full((1, 5, 6, 7), value)
    assert all(torch.isfinite(vary_intensity(image, seed)).all() for seed in range(60))


def test_placing_keeps_every_voxel_of_a_box_that_fits():
    box = torch.arange(1.0, 61).reshape(1, 3, 4, 5)
    out = pad_to_patch(box, (-2, -1, 0), (6, 6, 5))
    assert out.sum() == box.sum()
    assert out[0, 2, 1, 0] == 1
