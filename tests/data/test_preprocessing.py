"""Resampling and normalisation in closed form."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnet.core.errors import InputError
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.facts import QUANTILES, Intensities
from vnet.data.preprocessing import (
    Channel,
    Preprocessing,
    plan_preprocessing,
    pooled,
    resample_image,
    resample_label,
    size_fault,
)
from vnet.data.volumes import read_image, volume_from_array

PLAIN = Channel("none")


def centres(n):
    return (np.arange(n) + 0.5) / n


def ramp(size):
    z, y, x = np.meshgrid(*(centres(n) for n in size), indexing="ij")
    return (100 * z + 10 * y + x).astype(np.float32)[None]


@pytest.mark.parametrize("size", [(6, 8, 10), (2, 3, 4), (3, 7, 5), (1, 1, 1)])
def test_a_linear_ramp_is_resampled_exactly(size):
    """Between the outermost source centres; beyond them the nearest voxel's value holds."""
    have = (3, 4, 5)
    z, y, x = (np.clip(centres(m), centres(n)[0], centres(n)[-1]) for n, m in zip(have, size, strict=True))
    expected = (100 * z[:, None, None] + 10 * y[:, None] + x)[None]
    np.testing.assert_allclose(resample_image(ramp(have), size), expected, rtol=1e-5)


def test_the_same_spacing_changes_no_bit():
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    volume = volume_from_array(array.transpose(), np.diag([0.5, 2.0, 3.0, 1]))
    out = Preprocessing((3.0005, 2.0, 0.5), (PLAIN,)).apply(volume)
    np.testing.assert_array_equal(out[0], array)


def test_the_working_grid_spans_the_same_box():
    volume = volume_from_array(np.zeros((5, 4, 3)), np.diag([0.5, 2.0, 3.0, 1]))
    assert Preprocessing((1.0, 1.0, 1.0), (PLAIN,)).size(volume) == (9, 8, 2)
    assert Preprocessing((100.0, 1.0, 1.0), (PLAIN,)).size(volume) == (1, 8, 2)


@settings(deadline=None, max_examples=40)
@given(
    have=st.tuples(*[st.integers(1, 7)] * 3),
    want=st.tuples(*[st.integers(1, 9)] * 3),
)
def test_labels_come_from_the_voxel_that_holds_the_centre(have, want):
    label = np.arange(np.prod(have), dtype=np.uint16).reshape(have)
    out = resample_label(label, want)
    assert out.dtype == np.uint16
    for place in np.ndindex(*want):
        source = tuple(int((2 * i + 1) * n // (2 * m)) for i, n, m in zip(place, have, want, strict=True))
        assert out[place] == label[source]


def test_whole_factors_undo_each_other():
    label = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    np.testing.assert_array_equal(resample_label(resample_label(label, (9, 12, 15)), (3, 4, 5)), label)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1.7e6, 1e30])
def test_z_scores_have_mean_0_and_deviation_1_at_any_scale(scale):
    array = (np.random.default_rng(0).normal(5, 2, (3, 4, 5)) * scale).astype(np.float32)
    volume = volume_from_array(array.transpose(), np.eye(4))
    out = Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),)).apply(volume)
    assert out.mean(dtype=float) == pytest.approx(0, abs=1e-5)
    assert out.std(dtype=float) == pytest.approx(1, rel=1e-5)
    np.testing.assert_array_equal(volume.array[0], array)


@pytest.mark.parametrize("value", [0, -1024, 1e-20, 3e38])
def test_a_constant_volume_becomes_0(value):
    volume = volume_from_array(np.full((5, 4, 3), value), np.eye(4))
    assert not Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),)).apply(volume).any()


def test_each_channel_is_normalised_alone():
    rng = np.random.default_rng(0)
    image = np.stack([rng.normal(100, 5, (5, 4, 3)), rng.normal(-2, 0.1, (5, 4, 3))], -1)
    out = Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"), PLAIN)).apply(volume_from_array(image, np.eye(4)))
    assert out[0].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(out[1], image[..., 1].transpose(), rtol=1e-6)


def test_ct_is_clipped_and_scaled_by_the_foreground_of_the_data_set():
    channel = Channel("ct", lower=-100, upper=200, mean=50, std=25)
    array = np.array([-1000, -100, 50, 75, 3000], np.float32)
    channel.apply(array)
    assert array.tolist() == [-6, -6, 0, 1, 6]


def test_pooled_statistics_weigh_each_case_the_same():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 4001), rng.normal(10, 2, 4001)
    stats = [Intensities(v.mean(), v.std(), tuple(np.quantile(v, QUANTILES))) for v in (one, other)]
    both = np.concatenate([one, other])
    channel = pooled(stats)
    assert channel.mean == pytest.approx(both.mean())
    assert channel.std == pytest.approx(both.std())
    assert channel.lower == pytest.approx(np.quantile(both, 0.005), abs=0.15)
    assert channel.upper == pytest.approx(np.quantile(both, 0.995), abs=0.15)


def test_the_plan_takes_the_median_spacing_of_the_named_cases(decathlon, save):
    root = decathlon(4)
    for name, thick in zip(("case_00", "case_01", "case_02"), (2.0, 3.0, 7.0), strict=True):
        for folder in ("imagesTr", "labelsTr"):
            path = root / folder / f"{name}.nii.gz"
            voxels = np.arange(210, dtype=np.float32).reshape(5, 6, 7) % 3
            save(path, voxels if folder == "imagesTr" else voxels.astype(np.uint8), np.diag([1, 1, thick, 1]))
    dataset = open_dataset(root)
    checked = check_dataset(dataset, None, progress=False)
    assert plan_preprocessing(dataset, checked, None, ["case_00", "case_01", "case_02"]).spacing_mm == (3, 1, 1)
    assert plan_preprocessing(dataset, checked).spacing_mm == (2.5, 1, 1)
    assert plan_preprocessing(dataset, checked, (5, 4, 3)).spacing_mm == (5, 4, 3)
    with pytest.raises(ValueError, match="cases must name cases"):
        plan_preprocessing(dataset, checked, None, ["nobody"])


@pytest.mark.parametrize(("modality", "rule"), [("MRI", "zscore"), ("CT", "ct"), ("ct", "ct"), ("noNorm", "none")])
def test_the_rule_follows_the_modality(modality, rule, decathlon):
    dataset = open_dataset(decathlon(2, modal=modality))
    plan = plan_preprocessing(dataset, check_dataset(dataset, None, progress=False))
    assert [channel.rule for channel in plan.channels] == [rule]
    assert Preprocessing.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_another_number_of_channels_is_refused():
    volume = volume_from_array(np.zeros((5, 4, 3, 2)), np.eye(4))
    with pytest.raises(InputError, match="the image has 2 channels where 1 are due; give the channels"):
        Preprocessing((1.0, 1.0, 1.0), (PLAIN,)).apply(volume)


def test_a_working_grid_beyond_memory_is_refused_before_memory_is_taken(tmp_path, save):
    """Voxels said to be 60 mm wide, of a scan of 1 mm: 216 000 times as many on the working grid."""
    path = save(tmp_path / "scan.nii", np.zeros((64, 64, 64), np.float32), np.diag([60.0, 60.0, 60.0, 1.0]))
    volume = read_image([path])
    plan = Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"scan.nii: \(64, 64, 64\) voxels of \(60.0, .*\) mm become \(3840, "):
            plan.apply(volume)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("room", [True, False])
def test_the_bound_of_the_working_grid_counts_image_and_label(room, monkeypatch):
    need = 8 * 6 * 4 * (2 * 4 + 12)
    monkeypatch.setattr("vnet.data.preprocessing.memory_limit_bytes", lambda: need - (not room))
    plan = Preprocessing((0.5, 0.5, 0.5), (Channel("zscore"), Channel("none")))
    assert (size_fault((4, 3, 2), (1.0, 1.0, 1.0), plan) is None) == room
