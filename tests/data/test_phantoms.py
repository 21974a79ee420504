"""Phantoms are what they claim."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from vnet.core.errors import InputError
from vnet.data.affines import file_affine
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import find_unusual
from vnet.data.phantoms import PhantomKind, SheetKind, organs, write_phantoms, writing
from vnet.data.phantoms.anatomy import FIRST_ORGAN, Tube, Waves, fill_tube, nearest_two
from vnet.data.phantoms.organs import make_phantom, make_sheet, partial_volumes
from vnet.data.volumes import read_image, read_label

SMALL = PhantomKind(size=(18, 20, 22))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_seed_decides_every_byte(tmp_path):
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        write_phantoms(tmp_path / name, 3, seed, kind=SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    assert sum(one[path] == other[path] for path in one) == 1  # dataset.json


def test_more_phantoms_begin_with_the_same(tmp_path):
    write_phantoms(tmp_path / "few", 2, kind=SMALL)
    write_phantoms(tmp_path / "many", 3, kind=SMALL)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert all(few[path] == many[path] for path in few if path.suffix == ".gz")


@pytest.mark.parametrize("axes", ["LPS", "SRA", "PIR", "ILA"])
def test_the_anatomy_does_not_depend_on_how_files_lie(axes, tmp_path):
    for orientation in ("RAS", axes):
        kind = PhantomKind(size=(18, 20, 22), orientations=(orientation,))
        write_phantoms(tmp_path / orientation, 4, kind=kind)
    upright, turned = open_dataset(tmp_path / "RAS"), open_dataset(tmp_path / axes)
    for one, other in zip(upright.cases, turned.cases, strict=True):
        images, labels = (
            (read_image(one.images), read_image(other.images)),
            (read_label(one.label), read_label(other.label)),
        )
        assert images[1].orientation == axes
        np.testing.assert_array_equal(images[0].array, images[1].array)
        np.testing.assert_array_equal(labels[0].array, labels[1].array)
        assert images[0].spacing_mm == pytest.approx(images[1].spacing_mm)
        np.testing.assert_allclose(images[0].canonical_affine(), images[1].canonical_affine(), atol=1e-4)


def test_an_affine_has_its_axes_spacing_and_middle():
    affine = file_affine((3, 4, 5), (3.0, 2.0, 0.5), "LSA", oblique_degrees=10)
    assert nib.aff2axcodes(affine) == ("L", "S", "A")
    assert nib.affines.voxel_sizes(affine) == pytest.approx([0.5, 3.0, 2.0])
    np.testing.assert_allclose(affine @ [2, 1, 1.5, 1], [0, 0, 0, 1], atol=1e-9)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "usual"
    write_phantoms(root, 8)
    return open_dataset(root)


def test_usual_phantoms_pass_the_check_and_vary(usual):
    facts = check_dataset(usual, None, progress=False).facts
    assert usual.structures == ("background", "liver", "kidney", "vessel")
    assert len({fact.shape for fact in facts.values()}) == 8
    assert {fact.spacing_mm[0] for fact in facts.values()} == {1.25, 1.5}
    assert {fact.orientation for fact in facts.values()} >= {"RAS", "LPS", "SRA"}
    assert all(set(fact.labels) == {0, 1, 2, 3} for fact in facts.values())
    assert {finding.topic for finding in find_unusual(usual, facts)} == {"orientation"}
    means = [fact.foreground[0].mean for fact in facts.values()]
    assert max(means) / min(means) > 3  # the gain is the scanner's own


def test_organs_touch_and_vessels_are_thin_and_long(usual):
    for case in usual.cases:
        label = read_label(case.label).array
        touching = sum(
            int((np.minimum(a, b) == 1)[np.maximum(a, b) == 2].sum())
            for a, b in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1]), (label[:, :, 1:], label[:, :, :-1]))
        )
        assert touching > 40
        vessel = label == 3
        assert not ndimage.binary_erosion(vessel, iterations=3).any()
        core = ndimage.binary_erosion(vessel, np.ones((3, 3, 3))).sum() / vessel.sum()
        assert core < 0.05  # hardly a voxel with vessel all around
        extent = [int(np.ptp(axis)) for axis in np.nonzero(vessel)]
        assert max(extent) > 15


def test_a_grid_of_stride_4_loses_most_of_the_vessels_and_little_of_the_organs(usual):
    """What makes the phantoms a test for a point head."""
    scores = {value: [] for value in (1, 2, 3)}
    for case in usual.cases:
        label = read_label(case.label).array
        label = label[tuple(slice(0, n - n % 4) for n in label.shape)]
        shares = partial_volumes(label, 4, 4)
        coarse = np.stack([ndimage.zoom(share, 4, order=1, mode="nearest", grid_mode=True) for share in shares]).argmax(
            0
        )
        for value, found in scores.items():
            found.append(
                2 * ((coarse == value) & (label == value)).sum() / ((coarse == value).sum() + (label == value).sum())
            )
    means = {value: np.mean(found) for value, found in scores.items()}
    assert means[1] > 0.85
    assert means[2] > 0.75
    assert means[3] < 0.35


def test_structures_differ_in_intensity(usual):
    for case in usual.cases:
        image, label = read_image(case.images).array[0], read_label(case.label).array
        inner = {v: image[ndimage.binary_erosion(label == v)] for v in (1, 2)} | {3: image[label == 3]}
        tissue = image[(label == 0) & (image > np.quantile(image, 0.4))]
        assert tissue.mean() < inner[1].mean() < inner[2].mean() < np.quantile(inner[3], 0.8)


def test_ct_is_in_hounsfield_units():
    kind = PhantomKind(size=(18, 20, 22), modality="CT", noise=0.05, vary=False)
    image, label, spacing = make_phantom(0, 0, kind)
    assert spacing == (1.25, 1, 1)
    assert image.shape == (1, 18, 20, 22)
    assert -1100 < np.median(image[0][[0, -1], [0, -1], [0, -1]]) < -850
    assert 30 < np.median(image[0][label == 1]) < 110
    assert np.quantile(image[0][label == 3], 0.9) > 150


def test_channels_show_the_same_anatomy_otherwise(tmp_path):
    write_phantoms(tmp_path / "two", 2, kind=PhantomKind(size=(18, 20, 22), channels=2))
    dataset = open_dataset(tmp_path / "two")
    check_dataset(dataset, None, progress=False)
    assert dataset.modalities == ("MRI", "MRI")
    for case in dataset.cases:
        image, label = read_image(case.images).array, read_label(case.label).array
        assert len(image) == 2
        ratios = [one[label == 1].mean() / one[label == 3].mean() for one in image]
        assert ratios[0] < 1 < ratios[1]


@pytest.mark.parametrize(("organs", "vessels", "count"), [(1, False, 2), (3, True, 5), (24, False, 25)])
def test_any_number_of_classes(organs, vessels, count):
    kind = PhantomKind(size=(40, 44, 48), organs=organs, vessels=vessels, vary=False)
    _, label, _ = make_phantom(0, 0, kind)
    assert len(kind.structures) == count
    assert set(np.unique(label)) == set(range(count))


def test_an_ignore_label_lies_on_surfaces(tmp_path):
    write_phantoms(tmp_path / "unsure", 2, kind=PhantomKind(size=(18, 20, 22), ignore=0.5))
    dataset = open_dataset(tmp_path / "unsure")
    assert dataset.ignore == 4
    assert dataset.structures == ("background", "liver", "kidney", "vessel")
    check_dataset(dataset, None, progress=False)
    for case in dataset.cases:
        label = read_label(case.label).array
        assert (label == 4).sum() > 20
        assert not ndimage.binary_erosion(label == 4, iterations=2).any()


def test_slabs_do_not_show(monkeypatch):
    """Rendering in slabs, as for large volumes, gives the same labels."""
    whole = make_phantom(1, 0, SMALL)[1]
    monkeypatch.setattr(organs, "FINE_VOXELS", 8 * 20 * 22 * 4)
    np.testing.assert_array_equal(make_phantom(1, 0, SMALL)[1], whole)


def test_shares_add_up_to_one_and_count_materials():
    material = np.random.default_rng(0).integers(0, 3, (6, 8, 10)).astype(np.uint8)
    shares = partial_volumes(material, 2, 3)
    np.testing.assert_allclose(shares.sum(0), 1)
    assert shares[2, 0, 0, 0] == (material[:2, :2, :2] == 2).mean()


def test_a_tube_of_one_ball_is_a_ball():
    axes = np.ix_(np.arange(-3.0, 4), np.arange(-4.0, 5) / 2, np.arange(-5.0, 6))
    material = np.zeros((7, 9, 11), np.uint8)
    fill_tube(material, axes, Tube(np.array([[0, 0.5, -1]]), np.array([2.2])), 9)
    expected = axes[0] ** 2 + (axes[1] - 0.5) ** 2 + (axes[2] + 1) ** 2 <= 2.2**2
    np.testing.assert_array_equal(material == 9, expected)


def test_the_nearest_seed_and_the_distance_to_the_face():
    moved = np.array([[0.0], [0.0], [1.0]], np.float32)
    organ, gap = nearest_two(moved, np.array([[0, 0, 4.0], [0, 0, 0.0]]), np.zeros(2))
    assert organ.tolist() == [1]
    assert gap.tolist() == [1.0]  # distances 3 and 1: a millimetre to the middle


def test_waves_have_the_deviation_asked_for():
    fields = [Waves.draw(np.random.default_rng(seed), 3.0, 0.5, outputs=2) for seed in range(20)]
    axes = np.ix_(*(np.linspace(0, 40, 30, dtype=np.float32) for _ in range(3)))
    values = np.stack([field(axes) for field in fields])
    assert values.std() == pytest.approx(0.5, rel=0.05)
    assert abs(values.mean()) < 0.02
    assert FIRST_ORGAN == 2


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="is there already; name a new folder"):
        write_phantoms(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    write_phantoms(tmp_path / "empty", 1, kind=SMALL)
    assert (tmp_path / "empty/dataset.json").is_file()


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_nifti", full)
    with pytest.raises(OSError, match="No space"):
        write_phantoms(tmp_path / "made", 2, kind=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"size": (4, 20, 20)}, r"size must be 8 voxels or more an axis, got \(4, 20, 20\)"),
        ({"spacing_mm": (0.0, 1, 1)}, "spacing_mm must be positive"),
        ({"organs": 0}, "organs must lie in 1 to 200, got 0"),
        ({"modality": "PET"}, r"modality must be one of \('MRI', 'CT'\), got 'PET'"),
        ({"channels": 0}, "channels must be 1 or more"),
        ({"orientations": ("RAS", "RLS")}, "orientations must name three axes as RAS, got 'RLS'"),
        ({"orientations": ()}, "orientations must name at least one"),
        ({"fineness": 9}, "fineness must lie in 1 to 4"),
        ({"noise": -1}, "noise must be 0 or more"),
        ({"ignore": 2}, r"ignore must lie in \[0, 1\]"),
    ],
)
def test_kinds_that_cannot_be_made(wish, message):
    with pytest.raises(InputError, match=message):
        PhantomKind(**wish)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (1, -1)])
def test_counts_and_seeds_have_a_range(count, seed, tmp_path):
    with pytest.raises(InputError, match="count must be 1 or more and seed 0 or more, got"):
        write_phantoms(tmp_path / "made", count, seed)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_twice_as_thick_is_twice_the_volume(number: int) -> None:
    kinds = [SheetKind(thickness_vox=(t,), noise=(0.1,)) for t in (2.0, 4.0)]
    thin, thick = (make_sheet(number, 5, kind)[1] for kind in kinds)
    assert thick.sum() / thin.sum() == pytest.approx(2, rel=0.15)
    assert (thin <= thick).all()


def test_noise_is_added_to_the_same_sheet() -> None:
    quiet, loud = (make_sheet(3, 0, SheetKind(thickness_vox=(3.0,), noise=(s,))) for s in (0.0, 0.5))
    np.testing.assert_array_equal(quiet[1], loud[1])
    assert np.std(loud[0].astype(float) - quiet[0]) == pytest.approx(500, rel=0.03)
    # the contrast between sheet and surroundings is 1000, less partial volume
    means = [quiet[0][0][quiet[1] == label].mean() for label in (0, 1)]
    assert means[1] - means[0] == pytest.approx(850, abs=150)


def test_every_pair_of_thickness_and_noise_comes_and_is_written_down(tmp_path) -> None:
    kind = SheetKind(size=(16, 18, 20), thickness_vox=(1.0, 3.0), noise=(0.1, 0.2))
    write_phantoms(tmp_path / "sheets", 5, kind=kind)
    rows = (tmp_path / "sheets" / "properties.csv").read_text().splitlines()
    assert rows[0] == "case,thickness_vox,noise"
    assert [row.split(",", 1)[1] for row in rows[1:]] == ["1,0.1", "3,0.1", "1,0.2", "3,0.2", "1,0.1"]
    dataset = open_dataset(tmp_path / "sheets")
    assert dataset.structures == ("background", "sheet")
    first = read_label(dataset.cases[0].label).array
    np.testing.assert_array_equal(first, make_sheet(0, 0, kind)[1])


def test_refusals() -> None:
    with pytest.raises(InputError, match="thickness_vox must be positive, got 0"):
        SheetKind(thickness_vox=(0.0,))
    with pytest.raises(InputError, match="size must be 16 voxels or more an axis"):
        SheetKind(size=(8, 16, 16))
