"""`render_labels` equals the argmax of dense interpolation in float64, except where two classes tie in float32."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pointrend import render_labels
from pointrend._kernels import rendering
from pointrend._kernels.logit_planes import LogitVolume
from pointrend.coordinates import CellAxis, interpolation_table
from pointrend.render import _render_on_device

LOOPS = ["surface", "dense"]


@pytest.fixture(params=LOOPS)
def loop(request, monkeypatch):
    """Both loops, whatever the survey of the logits says."""
    force(monkeypatch, request.param)
    return request.param


def force(monkeypatch, name: str) -> None:
    monkeypatch.setattr(rendering, "pays_by_surface", lambda volume, axes: name == "surface")


def interpolated(logits: np.ndarray, size, align_corners: bool = False, extent=None) -> np.ndarray:
    """Dense linear interpolation in float64, axis after axis, straight from its definition."""
    values = logits.astype(np.float64)
    for axis, target in enumerate(size):
        source, share = logits.shape[axis + 2], 1.0 if extent is None else extent[axis]
        if align_corners:
            position = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
        else:
            position = share * (np.arange(target) + 0.5) / target * source - 0.5
        position = np.clip(position, 0, source - 1)
        low = np.floor(position).astype(int)
        weight = (position - low).reshape(-1, *[1] * (len(size) - axis - 1))
        high = np.minimum(low + 1, source - 1)
        values = (1 - weight) * values.take(low, axis + 2) + weight * values.take(high, axis + 2)
    return values


def assert_best(labels: np.ndarray, dense: np.ndarray) -> None:
    """Every label's logit is the largest, up to float32 rounding; where the lead is clear, the label is the argmax."""
    own = np.take_along_axis(dense, np.asarray(labels).astype(np.int64)[:, None], 1)[:, 0]
    scale = 1 + np.abs(dense).max()
    assert (dense.max(1) - own).max() <= 2e-5 * scale
    if dense.shape[1] > 1:
        best_two = np.sort(dense, axis=1)[:, -2:]
        clear = best_two[:, 1] - best_two[:, 0] > 2e-5 * scale
        np.testing.assert_array_equal(np.asarray(labels)[clear], dense.argmax(1)[clear])


@st.composite
def cases(draw: st.DrawFn):
    ndim = draw(st.sampled_from([2, 3]))
    batch, classes = draw(st.integers(1, 2)), draw(st.integers(1, 7))
    source = draw(st.lists(st.integers(1, 8), min_size=ndim, max_size=ndim))
    target = draw(st.lists(st.integers(1, 19), min_size=ndim, max_size=ndim))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(0, draw(st.sampled_from([0.3, 3.0])), (batch, classes, *source))
    if draw(st.booleans()):  # layers of classes with surfaces between them, rather than noise
        depth = np.linspace(0, classes, source[0]).reshape(-1, *[1] * (ndim - 1))
        logits -= abs(depth - np.arange(classes).reshape(-1, *[1] * ndim))
    dtype = draw(st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
    return torch.from_numpy(logits).to(getattr(torch, dtype)), tuple(target)


@pytest.mark.parametrize("name", LOOPS)
@settings(max_examples=60, deadline=None)
@given(case=cases(), align_corners=st.booleans(), threads=st.integers(1, 2), extent=st.floats(0.3, 1))
def test_labels_are_the_argmax_of_dense_interpolation(name, case, align_corners, threads, extent):
    logits, size = case
    extent = None if align_corners else (extent, *[1.0] * (len(size) - 1))
    with pytest.MonkeyPatch.context() as patch:
        force(patch, name)
        labels = render_labels(logits, size, align_corners, extent=extent, threads=threads)
    assert labels.dtype == torch.uint8
    dense = interpolated(logits.float().numpy(), size, align_corners, extent)
    assert_best(labels.numpy(), dense)


@pytest.mark.parametrize("align_corners", [False, True])
def test_labels_equal_torch(loop, align_corners):
    logits = torch.randn(2, 5, 7, 8, 9, generator=torch.Generator().manual_seed(0))
    dense = functional.interpolate(logits, size=(19, 21, 23), mode="trilinear", align_corners=align_corners)
    assert torch.equal(render_labels(logits, (19, 21, 23), align_corners).long(), dense.argmax(1))


def test_a_third_class_may_win_between_two_winners(loop):
    logits = np.array([[10.0, -10.0], [-10.0, 10.0], [1.0, 1.0]], np.float32).reshape(1, 3, 1, 2)
    # class 0 leads class 2 where 10 - 20 t > 1: in the first 45 % of the way between the centres
    labels = render_labels(logits, (1, 40), align_corners=True)
    way = np.linspace(0, 1, 40)
    np.testing.assert_array_equal(labels[0, 0], np.select([way < 0.45, way > 0.55], [0, 1], 2))


def test_a_class_outside_the_best_two_of_every_corner_may_win(loop):
    # along one axis: 0 and 1 lead at the left, 2 and 3 at the right, class 4 is third at both and best between them
    left, right = [9.0, 8.0, -9.0, -9.0, 4.0], [-9.0, -9.0, 9.0, 8.0, 4.0]
    logits = np.array([left, right], np.float32).T.reshape(1, 5, 1, 1, 2)
    assert render_labels(logits, (1, 1, 3), align_corners=True).tolist() == [[[[0, 4, 2]]]]


def test_ties_go_to_the_lower_class(loop):
    logits = torch.zeros(1, 4, 3, 4, 5)
    logits[:, 2:] = 1  # 2 and 3 tie everywhere
    assert (render_labels(logits, (5, 9, 11)) == 2).all()
    crossing = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 2, 1, 2)  # 0 and 1 tie in the middle
    assert render_labels(crossing, (1, 3), align_corners=True).tolist() == [[[0, 0, 1]]]


def test_one_class_is_label_zero(loop):
    assert not render_labels(torch.randn(2, 1, 3, 4), (6, 7)).any()


@pytest.mark.parametrize(("classes", "dtype"), [(256, torch.uint8), (257, torch.uint16)])
def test_many_classes(loop, classes, dtype):
    logits = torch.randn(1, classes, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    labels = render_labels(logits, (6, 7, 8))
    assert labels.dtype == dtype
    assert_best(labels.numpy(), interpolated(logits.numpy(), (6, 7, 8)))


def test_extent_is_rendering_the_padded_canvas_and_cropping(loop):
    logits = torch.randn(1, 3, 6, 5, 4, generator=torch.Generator().manual_seed(2))
    whole = render_labels(logits, (24, 20, 16))
    part = render_labels(logits, (18, 15, 16), extent=(0.75, 0.75, 1))
    assert torch.equal(part, whole[:, :18, :15])


def test_the_same_from_every_kind_of_input(loop, tmp_path):
    logits = torch.randn(2, 4, 5, 6, 7, generator=torch.Generator().manual_seed(3)).half().float()
    size = (11, 13, 8)
    expected = render_labels(logits, size)
    array = logits.numpy()
    np.save(tmp_path / "logits.npy", array)
    alike = {
        "array": array,
        "memory-mapped": np.load(tmp_path / "logits.npy", mmap_mode="r"),
        "big-endian": array.astype(">f4"),
        "float16": array.astype(np.float16),
        "Fortran order": np.asfortranarray(array),
        "unaligned": np.frombuffer(b"." + array.tobytes(), np.float32, offset=1).reshape(array.shape),
        "every other channel": np.repeat(array, 2, axis=1)[:, ::2],
    }
    for name, same in alike.items():
        labels = render_labels(same, size)
        assert isinstance(labels, np.ndarray), name
        np.testing.assert_array_equal(labels, expected.numpy(), err_msg=name)
    tensors = {
        "half": logits.half(),
        "strided": logits.mT.contiguous().mT,
        "with gradient": logits.clone().requires_grad_(),
    }
    for name, same in tensors.items():
        assert torch.equal(render_labels(same, size), expected), name


def test_the_input_stays_as_it_was(loop):
    logits = np.random.default_rng(0).normal(size=(1, 3, 4, 5, 6)).astype(np.float32)
    before = logits.copy()
    render_labels(logits, (8, 9, 10))
    np.testing.assert_array_equal(logits, before)
    assert logits.flags.writeable


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_blocks_of_rows_fit_together(loop, threads, monkeypatch):
    monkeypatch.setattr(rendering, "BLOCK_BYTES", 1)  # the smallest blocks
    logits = torch.randn(2, 3, 5, 23, 4, generator=torch.Generator().manual_seed(4)).half()
    dense = interpolated(logits.float().numpy(), (9, 50, 7))
    assert_best(render_labels(logits, (9, 50, 7), threads=threads).numpy(), dense)


def test_the_device_neutral_path_agrees():
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(5))
    axes = [CellAxis.between(s, t, e) for s, t, e in ((6, 13, 0.8), (7, 20, 1.0))]
    labels = _render_on_device(logits, axes)
    assert torch.equal(labels, render_labels(logits, (13, 20), extent=(0.8, 1.0)))


def test_an_empty_batch_has_no_labels():
    assert render_labels(torch.zeros(0, 3, 4, 5), (6, 7)).shape == (0, 6, 7)


def survey_of(logits: np.ndarray) -> np.ndarray:
    return rendering.sample_cells(LogitVolume(logits))


def axes_to(logits: np.ndarray, factor: int) -> list:
    return [CellAxis.between(n, n * factor) for n in logits.shape[2:]]


def test_noise_and_small_targets_go_to_the_dense_loop():
    random = np.random.default_rng(0)
    noise = random.normal(size=(1, 4, 20, 20, 20)).astype(np.float32)
    z = np.linspace(-1, 1, 20, dtype=np.float32).reshape(-1, 1, 1)
    layers = np.stack([z * c + noise[0, 0] * 0.01 for c in range(4)])[None]
    pays = [rendering.pays_by_surface(LogitVolume(x), axes_to(x, 4)) for x in (noise, layers)]
    assert pays == [False, True]
    assert not rendering.pays_by_surface(LogitVolume(layers), axes_to(layers, 1))


def test_the_survey_counts_cut_cells():
    # class 1 from column 6 on: one cell of 19 in each row is cut, and its candidates are known at sight
    logits = np.zeros((1, 3, 30, 30, 20), np.float32)
    logits[0, 0], logits[0, 1, ..., 6:], logits[0, 2] = 1, 2, -5
    np.testing.assert_allclose(survey_of(logits), [1 / 19, 0, 0, 0])


def test_tables_group_targets_by_cell():
    axis = CellAxis.between(4, 9)
    lower, _, _ = interpolation_table(4, 9)
    for cell in range(4):
        np.testing.assert_array_equal(np.flatnonzero(lower == cell), np.arange(*axis.starts[cell : cell + 2]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, -1])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_logits_that_are_not_finite_are_refused(loop, value, place, dtype):
    logits = np.zeros((2, 5, 4, 5, 6), dtype)
    logits.reshape(-1)[place] = value
    for size in ((8, 9, 10), (2, 3, 2)):
        with pytest.raises(ValueError, match="logits must be finite"):
            render_labels(logits, size)


def test_float64_beyond_float32_is_refused():
    with pytest.raises(ValueError, match=r"logits must be finite \(in float32\)"):
        render_labels(torch.full((1, 2, 3, 3), 1e300, dtype=torch.float64), (4, 4))


@pytest.mark.parametrize(
    ("logits", "arguments", "error", "message"),
    [
        (torch.zeros(3, 4, 5), {"size": (8,)}, ValueError, r"logits must be \(B, K, D, H, W\) .* got \(3, 4, 5\)"),
        (torch.zeros(1, 0, 4, 5), {}, ValueError, "1 to 65536 classes and no empty spatial axis"),
        (torch.zeros(1, 2, 0, 5), {}, ValueError, "no empty spatial axis"),
        (torch.zeros(1, 2, 4, 5).int(), {}, TypeError, "logits must be float16, .* got torch.int32"),
        (np.zeros((1, 2, 4, 5), bool), {}, TypeError, "logits must be float16, .* got bool"),
        ([[1.0]], {}, TypeError, "logits must be a tensor or an array, got list"),
        (torch.zeros(1, 2, 4, 5), {"size": (8, 9, 10)}, ValueError, r"size must be 2 whole numbers .*\(8, 9, 10\)"),
        (torch.zeros(1, 2, 4, 5), {"size": (8, 0)}, ValueError, "size must be at least 1, got 0"),
        (torch.zeros(1, 2, 4, 5), {"size": (8, 9.5)}, TypeError, "size must be whole, got 9.5"),
        (torch.zeros(1, 2, 4, 5), {"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        (torch.zeros(1, 2, 4, 5), {"extent": (0.5,)}, ValueError, "extent must be 2 numbers"),
        (torch.zeros(1, 2, 4, 5), {"extent": (0.5, 1.2)}, ValueError, r"extent must be 2 numbers in \(0, 1\]"),
        (
            torch.zeros(1, 2, 4, 5),
            {"extent": (0.5, 1), "align_corners": True},
            ValueError,
            "align_corners=True cannot be combined with an extent",
        ),
    ],
)
def test_bad_input_is_refused(logits, arguments, error, message):
    with pytest.raises(error, match=message):
        render_labels(logits, **({"size": (8, 9)} | arguments))


def test_an_infinite_class_is_refused_and_a_very_low_one_is_not():
    logits = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    logits[:, 2] = -1e30
    assert set(render_labels(logits, (8, 9, 10)).unique().tolist()) <= {0, 1}
    logits[:, 2] = -torch.inf
    with pytest.raises(ValueError, match="logits must be finite"):
        render_labels(logits, (8, 9, 10))
