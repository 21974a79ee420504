"""Reading volumes at points and in windows, and what logits say there: hand-worked values, oracles, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pointrend._kernels import threads as _threads
from pointrend.coordinates import voxel_centres
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
