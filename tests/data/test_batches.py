"""Preprocessing of volumes; batches are a function of (seed, step), their views one resampling in mm."""

import json
import threading
import tracemalloc
from collections import Counter
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vnet.core.errors import InputError, RunFault
from vnet.data.augmentation import View, draw_matrix, extract_patch, pad_to_patch, rotation, source_box, vary_intensity
from vnet.data.batches import TrainingBatches, pick_location
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
from vnet.data.store import CaseStore, locate_classes
from vnet.data.volumes import read_image, volume_from_array

PATCH = (4, 9, 3)  # of volumes (7, 6, 5): larger, smaller, larger


@pytest.fixture
def dataset(decathlon):
    return open_dataset(decathlon(5))


def make(dataset, **changes):
    preprocessing = plan_preprocessing(dataset, check_dataset(dataset, None, progress=False))
    settings = {"patch": PATCH, "batch": 2, "seed": 7} | changes
    return TrainingBatches(dataset, dataset.cases, preprocessing, **settings)


def same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)
    assert one[2] == other[2]


def test_a_batch_has_the_shapes_and_types_of_training(dataset):
    image, label, names = make(dataset).batch(3)
    assert image.shape == (2, 1, *PATCH)
    assert image.dtype == torch.float32
    assert label.shape == (2, *PATCH)
    assert label.dtype == torch.int64
    assert len(names) == 2
    assert set(label.unique().tolist()) <= {0, 1, 2}


def test_a_batch_is_a_function_of_seed_and_step(dataset, tmp_path):
    asked_in_order, asked_alone = make(dataset, cache=tmp_path), make(dataset, cache=tmp_path)
    batches = [asked_in_order.batch(step) for step in range(9)]
    for step in (8, 0, 5):
        same(asked_alone.batch(step), batches[step])
    assert not torch.equal(make(dataset, seed=8).batch(0)[0], batches[0][0])
    assert not torch.equal(batches[0][0], batches[1][0])


def test_a_batch_does_not_touch_global_random_states(dataset):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 the state under test
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    make(dataset).batch(0)
    torch.testing.assert_close(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_shares_of_a_batch_make_up_the_whole(dataset):
    whole = make(dataset, batch=3).batch(4)
    parts = [make(dataset, batch=3, samples=samples).batch(4) for samples in ((0, 2), (1,))]
    torch.testing.assert_close(torch.cat([parts[0][0], parts[1][0]]), whole[0][[0, 2, 1]], rtol=0, atol=0)
    assert parts[1][2] == whole[2][1:2]


@pytest.mark.parametrize("start", [0, 4])
def test_the_stream_equals_the_batches(start, dataset):
    batches = make(dataset)
    with closing(batches.stream(start)) as stream:
        for step, item in enumerate(islice(stream, 6), start):
            same(item, batches.batch(step))


def test_a_closed_stream_leaves_no_thread(dataset):
    stream = make(dataset).stream()
    next(stream)
    assert "batches" in {thread.name for thread in threading.enumerate()}
    stream.close()
    assert "batches" not in {thread.name for thread in threading.enumerate()}


def test_a_thread_that_dies_without_a_word_is_told(dataset, monkeypatch):
    monkeypatch.setattr(TrainingBatches, "produce", lambda self, queue, stop, step: queue.put(self.batch(step)))
    with closing(make(dataset).stream()) as stream:
        next(stream)
        with pytest.raises(RunFault, match="the thread that prepares batches died; run the same command again"):
            next(stream)


def test_the_thread_takes_one_core_and_leaves_the_others(dataset, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        batches, seen = make(dataset), []
        original = batches.batch
        monkeypatch.setattr(batches, "batch", lambda step: seen.append(torch.get_num_threads()) or original(step))
        with closing(batches.stream()) as stream:
            next(stream)
            assert torch.get_num_threads() == 3
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_every_case_is_seen_once_an_epoch(dataset):
    batches = make(dataset, batch=2)
    names = [name for step in range(10) for name in batches.batch(step)[2]]
    epochs = [names[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [case.name for case in dataset.cases] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_volume_that_fits_is_shown_whole_at_varying_places(dataset):
    batches = make(dataset, patch=(9, 8, 11), augment=False)
    places = set()
    for step in range(12):
        image, label, names = batches.batch(step)
        for one, marked, name in zip(image, label, names, strict=True):
            number = [case.name for case in dataset.cases].index(name)
            prepared = batches.store[number]
            assert marked.count_nonzero() == np.count_nonzero(prepared.label)
            corner = [int(axis.min()) for axis in one[0].nonzero(as_tuple=True)]
            here = tuple(slice(c, c + n) for c, n in zip(corner, prepared.label.shape, strict=True))
            np.testing.assert_array_equal(one[(0, *here)].numpy(), prepared.image[0])
            np.testing.assert_array_equal(marked[here].numpy(), prepared.label)
            assert one.count_nonzero() == np.count_nonzero(prepared.image)
            places.add(tuple(corner))
    assert len(places) > 10


def test_patches_of_larger_volumes_hold_foreground_when_asked(decathlon, save):
    root = decathlon(2, shape=(40, 41, 42))
    for name, corner in (("case_00", (3, 38, 20)), ("case_01", (39, 0, 41))):
        label = np.zeros((40, 41, 42), np.uint8)
        label[corner] = 1
        save(root / f"labelsTr/{name}.nii.gz", label)
    dataset = open_dataset(root)
    always = make(dataset, patch=(8, 9, 10), augment=False, foreground_share=1.0)
    assert all((label == 1).any(dim=(1, 2, 3)).all() for label in (always.batch(step)[1] for step in range(20)))
    often = make(dataset, patch=(8, 9, 10), augment=False)
    found = sum(int((label == 1).any(dim=(1, 2, 3)).sum()) for label in (often.batch(step)[1] for step in range(60)))
    assert 40 < found < 80  # about half of 120; a random patch holds the one voxel in 1 of 80


def test_structures_are_chosen_alike_however_small():
    label = np.zeros((20, 20, 20), np.uint8)
    label[:, :, 5:], label[0, 0, 0] = 1, 2
    places = locate_classes(label, None)
    rng = np.random.default_rng(0)
    picked = Counter(label[tuple(pick_location(places, *rng.random(2)))] for _ in range(400))
    assert 150 < picked[2] < 250
    assert picked[0] == 0
    assert pick_location(locate_classes(np.zeros((2, 3, 4), np.uint8), None), 0.5, 0.5) is None


def test_an_ignore_label_is_kept_and_never_aimed_at():
    label = np.zeros((3, 4, 5), np.uint8)
    label[0, 0, 0], label[2, 3, 4] = 1, 9
    assert locate_classes(label, 9).tolist() == [[1, 0, 0, 0]]


def test_mirroring_mirrors_the_named_axes_only(dataset):
    """Upright samples of whole volumes: each is the volume, or its mirror image along y."""
    batches = make(dataset, patch=(7, 6, 5), mirror=("y",))
    seen = Counter()
    for step in range(30):
        _, label, names = batches.batch(step)
        for number, (marked, name) in enumerate(zip(label, names, strict=True)):
            case = batches.case_number(step, number)
            assert dataset.cases[case].name == name
            truth = batches.store[case].label
            seen["as is"] += np.array_equal(marked.numpy(), truth)
            seen["mirrored"] += np.array_equal(marked.numpy(), truth[:, ::-1])
    assert seen["as is"] > 8
    assert seen["mirrored"] > 8


def test_padding_stays_0_under_augmentation(dataset):
    """Zero is what prediction pads with; a shift of brightness must not move it."""
    batches = make(dataset, patch=(20, 20, 20))
    for step in range(15):
        image, label, _ = batches.batch(step)
        corners = image[:, 0, ::19, ::19, ::19]
        assert (corners == 0).float().mean() > 0.5
        assert (label[:, ::19, ::19, ::19] == 0).all()


def test_prepared_cases_come_back_from_the_cache_bit_for_bit(dataset, tmp_path, monkeypatch):
    first = make(dataset, cache=tmp_path)
    fresh = [first.store[number] for number in range(5)]
    monkeypatch.setattr(CaseStore, "prepare", None)
    again = make(dataset, cache=tmp_path)
    for number, prepared in enumerate(fresh):
        for part in ("image", "label", "class_locations"):
            np.testing.assert_array_equal(getattr(again.store[number], part), getattr(prepared, part))


def test_cases_beyond_memory_are_mapped_from_disk(dataset, tmp_path):
    plan = Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),))
    roomy = CaseStore(dataset.cases, plan, cache=tmp_path)
    tight = CaseStore(dataset.cases, plan, cache=tmp_path, memory_bytes=100)
    for number in range(5):
        assert isinstance(tight[number].image, np.memmap)
        np.testing.assert_array_equal(tight[number].image, roomy[number].image)
    assert not tight.kept


def test_what_fits_stays_in_memory_and_the_rest_is_mapped(dataset, tmp_path, monkeypatch):
    """Every epoch shows every case once, so that throwing one out for another would read all of them each time."""
    plan = Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),))
    store = CaseStore(dataset.cases, plan, cache=tmp_path)
    store.budget = int(2.5 * store[0].nbytes)
    first = [isinstance(store[number].image, np.memmap) for number in range(5)]
    monkeypatch.setattr(CaseStore, "key", None)  # nor are files read again to find what is kept of them
    again = [isinstance(store[number].image, np.memmap) for number in range(5)]
    assert first == again == [False, False, True, True, True]
    assert sorted(store.kept) == [0, 1]


def test_the_least_used_case_makes_room(dataset):
    plan = Preprocessing((1.0, 1.0, 1.0), (Channel("zscore"),))
    store = CaseStore(dataset.cases, plan, cache=None)
    store.budget = 2 * store[0].nbytes
    for number in (1, 0, 2):
        store[number]
    assert list(store.kept) == [0, 2]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"x" * 300])
def test_a_damaged_cache_file_is_made_anew(content, dataset, tmp_path):
    fresh = make(dataset, cache=tmp_path).store[2].image
    for path in tmp_path.rglob("*_image.npy"):
        path.write_bytes(content)
    np.testing.assert_array_equal(make(dataset, cache=tmp_path).store[2].image, fresh)


def test_another_preprocessing_is_another_cache_entry(dataset, tmp_path):
    make(dataset, cache=tmp_path).store[0]
    coarse = Preprocessing((2.0, 2.0, 2.0), (Channel("zscore"),))
    store = CaseStore(dataset.cases, coarse, cache=tmp_path)
    assert store[0].label.shape == (4, 3, 2)


def test_files_that_vanish_or_change_during_a_run_end_it_by_name(dataset, save):
    batches = make(dataset)
    save(dataset.cases[1].images[0], np.ones((5, 6, 7), np.float32) * 3)
    with pytest.raises(RunFault, match="case case_01: its files changed during the run; restore them"):
        batches.store[1]
    dataset.cases[2].label.unlink()
    message = r"case case_02: .*labelsTr/case_02.nii.gz vanished; restore it|case_01: its files changed"
    with closing(batches.stream()) as stream, pytest.raises(RunFault, match=message) as caught:
        list(islice(stream, 9))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": (4, 0, 3)}, r"patch must hold three positive sizes .* got \(4, 0, 3\)"),
        ({"batch": 0}, "batch be positive"),
        ({"mirror": ("w",)}, r"mirror must name axes among z, y, x, got \('w',\)"),
        ({"foreground_share": 1.5}, r"foreground_share must lie in \[0, 1\], got 1.5"),
    ],
)
def test_settings_that_cannot_serve(changes, message, dataset):
    with pytest.raises(ValueError, match=message):
        make(dataset, **changes)


def test_unlabelled_cases_are_refused(dataset):
    with pytest.raises(ValueError, match="cases must be labelled and at least one, got none"):
        CaseStore([], Preprocessing((1.0, 1.0, 1.0), (Channel("none"),)), cache=None)


@pytest.mark.parametrize("shape", [(5, 6, 1), (1, 1, 1), (5, 6, 7, 2)])
def test_slices_single_voxels_and_channels_pass(shape, decathlon, save):
    root = decathlon(2, shape=shape)
    for name in ("case_00", "case_01"):
        save(root / f"labelsTr/{name}.nii.gz", np.ones(shape[:3], np.uint8))
    batches = make(open_dataset(root))
    for step in range(8):
        image, label, _ = batches.batch(step)
        assert image.shape == (2, shape[3] if len(shape) == 4 else 1, *PATCH)
        assert torch.isfinite(image).all()
        assert (label <= 1).all()


SEEN = (6, 8, 10)


def ramp(size):
    z, y, x = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    return torch.from_numpy((100 * z + 10 * y + x).astype(np.float32))[None]


def see(image, label, view, patch=SEEN):
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
    rooms = [n - p for n, p in zip(size, SEEN, strict=True)]
    start = tuple(min(r, 0) + round(s * abs(r)) for r, s in zip(rooms, shares, strict=True))
    shown, marked = see(image, label, View(start, None, tuple(sorted(flips))))
    padded = np.pad(image[0].numpy(), [(p, p) for p in SEEN])
    wanted = padded[tuple(slice(p + s, 2 * p + s) for p, s in zip(SEEN, start, strict=True))]
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
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SEEN), indexing="ij"), -1)
    middle = (np.array(SEEN) - 1) / 2
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


PLAIN = Channel("none")


def centres(n):
    return (np.arange(n) + 0.5) / n


def preprocessing_ramp(size):
    z, y, x = np.meshgrid(*(centres(n) for n in size), indexing="ij")
    return (100 * z + 10 * y + x).astype(np.float32)[None]


@pytest.mark.parametrize("size", [(6, 8, 10), (2, 3, 4), (3, 7, 5), (1, 1, 1)])
def test_a_linear_ramp_is_resampled_exactly(size):
    """Between the outermost source centres; beyond them the nearest voxel's value holds."""
    have = (3, 4, 5)
    z, y, x = (np.clip(centres(m), centres(n)[0], centres(n)[-1]) for n, m in zip(have, size, strict=True))
    expected = (100 * z[:, None, None] + 10 * y[:, None] + x)[None]
    np.testing.assert_allclose(resample_image(preprocessing_ramp(have), size), expected, rtol=1e-5)


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
