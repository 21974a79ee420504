"""Coordinates of voxels and points, and values read at them."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend._kernels import threads as _threads
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
from pointrend.reading import best_class, interpolate_at, read_at, read_window, sample_at, uncertainty


def centres(n):
    return (torch.arange(n) + 0.5) / n


# ---- sample_at


def test_a_linear_ramp_is_sampled_exactly():
    z, y, x = torch.meshgrid(centres(3), centres(4), centres(5), indexing="ij")
    ramp = (100 * z + 10 * y + x)[None, None]
    points = torch.tensor([[[0.5, 0.5, 0.5], [0.2, 0.8, 0.3]]])
    torch.testing.assert_close(sample_at(ramp, points)[0, 0], points[0] @ torch.tensor([100.0, 10.0, 1.0]))


def test_a_linear_ramp_is_sampled_exactly_in_2d():
    y, x = torch.meshgrid(centres(3), centres(4), indexing="ij")
    ramp = (10 * y + x)[None, None]
    points = torch.tensor([[[0.5, 0.5], [0.7, 0.2]]])
    torch.testing.assert_close(sample_at(ramp, points)[0, 0], points[0] @ torch.tensor([10.0, 1.0]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(1, 3), st.integers(0, 2**31))
def test_voxel_centres_of_any_grid_read_what_interpolate_gives(source, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn(batch, 2, *source, generator=generator)
    size = torch.randint(1, 9, (len(source),), generator=generator).tolist()
    index = torch.arange(math.prod(size)).expand(batch, -1)
    mode = {2: "bilinear", 3: "trilinear"}[len(source)]
    expected = F.interpolate(volume, size=size, mode=mode, align_corners=False).flatten(2)
    torch.testing.assert_close(sample_at(volume, voxel_centres(index, size)), expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    source=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    count=st.integers(0, 700),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_the_compiled_loop_reads_what_grid_sample_reads_with_its_gradient(source, batch, channels, count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.randn(batch, channels, *source, generator=generator).to(dtype)
    points = torch.rand(batch, count, len(source), generator=generator) * 1.2 - 0.1  # also outside
    weight = torch.randn(batch, channels, count, generator=generator).to(dtype)
    results = []
    for exact in (volume.clone(), volume.double()):  # torch reads float64
        values = sample_at(exact.requires_grad_(), points)
        gradient = torch.zeros_like(exact)
        if count:
            (gradient,) = torch.autograd.grad(values, exact, weight.to(exact.dtype))
        assert values.dtype == gradient.dtype == exact.dtype
        results.append((values.double(), gradient.double()))
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)
    assert torch.equal(sample_at(volume, points).double(), results[0][0].detach())


def test_threads_and_memory_layout_do_not_change_what_is_read_nor_its_gradient(monkeypatch):
    volume, points = torch.randn(2, 5, 6, 7, 8, requires_grad=True), torch.rand(2, 3001, 3)

    def read():
        values = sample_at(volume, points)
        return values.detach(), torch.autograd.grad(values.square().sum(), volume)[0]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone, gradient = read()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(_threads, "VALUES_PER_THREAD", 1)
    assert torch.equal(read()[0], alone)
    assert torch.equal(read()[1], gradient)
    with torch.no_grad():
        assert torch.equal(sample_at(volume.contiguous(memory_format=torch.channels_last_3d), points), alone)
        assert torch.equal(sample_at(volume, points.flip(1)).flip(2), alone)


def test_points_that_want_a_gradient_get_it():
    volume, points = torch.randn(1, 2, 3, 4, 5), torch.rand(1, 7, 3, requires_grad=True)
    inner = (points.detach() * 0.4 + 0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda where: sample_at(volume.double(), where), inner)
    assert torch.autograd.grad(sample_at(volume, points).sum(), points)[0].abs().sum() > 0


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_points_that_are_not_numbers_are_refused(mode):
    points = torch.full((2, 5, 2), 0.5)
    points[1, 3, 1] = math.nan
    with pytest.raises(ValueError, match="points must be numbers, got NaN"):
        sample_at(torch.ones(2, 1, 3, 4), points, mode)


def test_points_at_infinity_read_the_border_and_none_reads_outside():
    ramp = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[math.inf, 0.5], [-math.inf, 0.5], [0.5, 9e9]]])
    assert sample_at(ramp, points)[0, 0].tolist() == [9.5, 1.5, 7.0]
    points[:] = math.nan  # past the check: the compiled loop stays within the volume
    assert interpolate_at(torch.ones(1, 1, 3, 4), points)[0, 0].tolist() == [1.0, 1.0, 1.0]


def test_the_border_is_not_pulled_to_zero():
    corners = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.01, 0.5, 0.99]]])
    assert torch.equal(sample_at(torch.full((1, 1, 8, 8, 8), 5.0), corners), torch.full((1, 1, 3), 5.0))


def test_samples_of_a_batch_read_their_own_volume():
    volume = torch.stack([torch.full((2, 3, 4), 1.0), torch.full((2, 3, 4), 2.0)])
    assert sample_at(volume, torch.rand(2, 5, 2)).mean((1, 2)).tolist() == [1.0, 2.0]


def test_nearest_reads_the_voxel_that_holds_the_point():
    labels = torch.arange(60).view(1, 1, 3, 4, 5)
    points = torch.tensor([[[0.99, 0.0, 0.41], [0.34, 0.6, 0.1]]])
    assert sample_at(labels, points, mode="nearest").tolist() == [[[2 * 20 + 0 + 2, 20 + 2 * 5]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_volume_is_kept_and_coordinates_stay_sharp(dtype):
    # in bfloat16 a coordinate has 8 bits, less than 300 voxels need
    ramp = torch.arange(300, dtype=dtype)[None, None, None]
    sampled = sample_at(ramp, torch.tensor([[[0.5, 150.5 / 300]]]))
    assert sampled.dtype == dtype
    assert sampled.item() == pytest.approx(150, abs=1e-4)


def test_no_points_give_no_values():
    assert sample_at(torch.zeros(2, 3, 4, 5), torch.zeros(2, 0, 2)).shape == (2, 3, 0)


@pytest.mark.parametrize("size", [(3, 4), (3, 4, 5)])
def test_reading_by_index_is_sampling_at_centres_with_the_same_gradient(size):
    torch.manual_seed(0)
    volume = torch.randn(2, 3, *size, requires_grad=True)
    points = voxel_centres(torch.randint(math.prod(size), (2, 30)), size)
    weight = torch.randn(2, 3, 30)
    results = []
    for grid in (None, size):
        values = read_at(volume, points, grid)
        results.append((values, *torch.autograd.grad((values * weight).sum(), volume)))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("volume", "points", "message"),
    [
        (torch.zeros(2, 1, 3, 4, 5), torch.zeros(2, 7, 2), r"points must be \(2, N, 3\), got \(2, 7, 2\)"),
        (torch.zeros(2, 1, 3, 4, 5), torch.zeros(1, 7, 3), r"points must be \(2, N, 3\), got \(1, 7, 3\)"),
        (torch.zeros(1, 1, 3, 4), torch.zeros(7, 2), r"points must be \(1, N, 2\), got \(7, 2\)"),
        (torch.zeros(1, 1, 3), torch.zeros(1, 7, 1), r"volume must be .* got \(1, 1, 3\)"),
    ],
)
def test_shapes_that_disagree_are_refused(volume, points, message):
    with pytest.raises(ValueError, match=message):
        sample_at(volume, points)


def test_modes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="mode must be 'bilinear' or 'nearest', got 'cubic'"):
        sample_at(torch.zeros(1, 1, 3, 4), torch.zeros(1, 2, 2), mode="cubic")
    with pytest.raises(TypeError, match=r"needs a floating-point volume, got torch.int64"):
        sample_at(torch.zeros(1, 1, 3, 4, dtype=torch.int64), torch.zeros(1, 2, 2))


# ---- uncertainty


def test_uncertainty_by_hand():
    logits = torch.tensor([[1.0, 4.0, 3.5], [2.0, 2.0, -1.0]])[:, :, None]  # (2, 3, 1)
    assert uncertainty(logits).tolist() == [[-0.5], [0.0]]


def test_two_classes_are_the_distance_from_one_half():
    logits = torch.randn(1, 2, 50)
    probability = logits.softmax(1)[:, 1]
    torch.testing.assert_close(uncertainty(logits), -probability.logit().abs(), atol=1e-4, rtol=1e-4)


@given(st.integers(2, 7), st.integers(0, 2**31))
@settings(deadline=None, max_examples=25)
def test_uncertainty_is_the_second_of_the_top_two_minus_the_first(classes, seed):
    logits = torch.randn(2, classes, 3, 4, 5, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    best, second = logits.topk(2, dim=1).values.unbind(1)
    assert torch.equal(uncertainty(logits), second - best)


def test_the_best_class_is_the_first_of_those_that_tie():
    logits = torch.randint(-3, 4, (2, 5, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    expected = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(best_class(logits).long(), expected)
    assert best_class(torch.zeros(1, 3, 2)).tolist() == [[0, 0]]


def test_one_class_has_no_uncertainty():
    with pytest.raises(ValueError, match=r"K >= 2, got \(1, 1, 4\)"):
        uncertainty(torch.zeros(1, 1, 4))


# ---- read_window


def every_centre(size: tuple[int, ...], batch: int) -> torch.Tensor:
    index = torch.arange(int(torch.tensor(size).prod()))
    return voxel_centres(index, size).expand(batch, -1, -1)


@pytest.mark.parametrize("size", [(3, 4, 5), (4, 7)])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("by_index", [True, False])
def test_a_linear_layer_on_windows_is_a_convolution(size: tuple[int, ...], window: int, by_index: bool) -> None:
    torch.manual_seed(0)
    volume = torch.randn(2, 3, *size)
    weight = torch.randn(4, 3, *[window] * len(size))
    convolve = F.conv3d if len(size) == 3 else F.conv2d
    expected = convolve(F.pad(volume, [window // 2] * 2 * len(size), mode="replicate"), weight)
    read = read_window(volume, every_centre(size, 2), window, size if by_index else None)
    assert read.shape == (2, 3 * window ** len(size), int(torch.tensor(size).prod()))
    at_points = torch.einsum("oc,bcn->bon", weight.flatten(1), read).reshape(expected.shape)
    torch.testing.assert_close(at_points, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(3, 4, 5), (4, 7)])
def test_the_compiled_loop_has_the_gradient_of_torch_s_gather(size: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    centres = every_centre(size, 2)[:, torch.randint(int(torch.tensor(size).prod()), (9,))]  # some twice
    grads = []
    for dtype in (torch.float32, torch.float64):  # float64 takes the plain path
        volume = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
        read = read_window(volume, centres, 3, size)
        (read * torch.arange(read.numel()).reshape(read.shape)).sum().backward()
        assert volume.grad is not None
        grads.append((read.detach().double(), volume.grad.double()))
    torch.testing.assert_close(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_threads_change_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointrend._kernels.threads.VALUES_PER_THREAD", 1)
    volume = torch.randn(1, 5, 6, 7, 8, generator=torch.Generator().manual_seed(3))
    read = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        part = volume.clone().requires_grad_()
        values = read_window(part, every_centre((6, 7, 8), 1), 3, (6, 7, 8))
        values.square().sum().backward()
        assert part.grad is not None
        read.append((values, part.grad))
    assert torch.equal(read[0][0], read[1][0])
    assert torch.equal(read[0][1], read[1][1])


def test_between_voxels_the_window_is_interpolated() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 4, 5, 6)
    points = torch.tensor([[[0.5, 0.5, 3.2 / 6]]])  # 2.7 along x
    read = read_window(ramp, points, 3)[0, :, 0].reshape(3, 3, 3)
    torch.testing.assert_close(read, torch.tensor([1.7, 2.7, 3.7]).expand(3, 3, 3))


@pytest.mark.parametrize("size", [(3, 4, 5), (4, 7), (1, 6, 2)])
@pytest.mark.parametrize("window", [3, 5])
def test_the_compiled_loop_reads_between_voxels_what_the_samples_read_one_by_one(
    size: tuple[int, ...], window: int
) -> None:
    generator = torch.Generator().manual_seed(4)
    volume = torch.randn(2, 3, *size, generator=generator)
    points = torch.rand(2, 300, len(size), generator=generator) * 3 - 1  # also outside
    read = read_window(volume, points, window)
    steps = torch.cartesian_prod(*[torch.arange(window) - window // 2] * len(size))
    for sample, step in enumerate(steps):
        shifted = points.double() + step / torch.tensor(size)
        expected = sample_at(volume.double(), shifted)
        torch.testing.assert_close(read[:, sample :: len(steps)].double(), expected, rtol=0, atol=2e-5)
    # with a gradient wanted, the samples are interpolated one by one
    plain = read_window(volume.clone().requires_grad_(), points, window)
    torch.testing.assert_close(plain.detach(), read, rtol=0, atol=2e-5)


def test_threads_change_nothing_between_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointrend._kernels.threads.VALUES_PER_THREAD", 1)
    volume, points = torch.randn(1, 5, 6, 7, 8), torch.rand(1, 401, 3)
    read = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        read.append(read_window(volume, points, 3))
    assert torch.equal(*read)


def test_windows_of_points_that_are_not_numbers_read_nothing_outside() -> None:
    points = torch.tensor([[[float("nan"), 0.5, -9e9], [float("inf"), 9e9, 0.5], [0.5, -float("inf"), 0.5]]])
    assert (read_window(torch.ones(1, 1, 3, 4, 5), points, 3) == 1).all()


def test_windows_of_no_points_and_refusals() -> None:
    volume = torch.zeros(2, 3, 4, 5, 6)
    assert read_window(volume, torch.zeros(2, 0, 3), 3).shape == (2, 81, 0)
    assert read_window(volume, torch.zeros(2, 0, 3), 3, (4, 5, 6)).shape == (2, 81, 0)
    with pytest.raises(ValueError, match="window must be odd and at least 1, got 2"):
        read_window(volume, torch.zeros(2, 1, 3), 2)
    with pytest.raises(ValueError, match=r"points must be \(2, N, 3\), got \(1, 1, 3\)"):
        read_window(volume, torch.zeros(1, 1, 3), 3)


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
