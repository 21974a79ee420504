"""Windows around points: what a convolution reads there."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pointrend.coordinates import voxel_centres
from pointrend.reading import read_window, sample_at


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


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_points_that_are_not_numbers_read_nothing_outside() -> None:
    points = torch.tensor([[[float("nan"), 0.5, -9e9], [float("inf"), 9e9, 0.5], [0.5, -float("inf"), 0.5]]])
    assert (read_window(torch.ones(1, 1, 3, 4, 5), points, 3) == 1).all()


def test_no_points_and_refusals() -> None:
    volume = torch.zeros(2, 3, 4, 5, 6)
    assert read_window(volume, torch.zeros(2, 0, 3), 3).shape == (2, 81, 0)
    assert read_window(volume, torch.zeros(2, 0, 3), 3, (4, 5, 6)).shape == (2, 81, 0)
    with pytest.raises(ValueError, match="window must be odd and at least 1, got 2"):
        read_window(volume, torch.zeros(2, 1, 3), 2)
    with pytest.raises(ValueError, match=r"points must be \(2, N, 3\), got \(1, 1, 3\)"):
        read_window(volume, torch.zeros(1, 1, 3), 3)
