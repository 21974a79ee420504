"""Data sets that are made: phantoms of known shape, and images drawn from label maps."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from vnet.commands.data import main
from vnet.core.errors import InputError
from vnet.data.affines import file_affine
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import find_unusual
from vnet.data.folds import select_fold
from vnet.data.phantoms import PhantomKind, SheetKind, organs, write_phantoms, writing
from vnet.data.phantoms.anatomy import FIRST_ORGAN, Tube, Waves, fill_tube, nearest_two
from vnet.data.phantoms.organs import make_phantom, make_sheet, partial_volumes
from vnet.data.synthesis.image_model import (
    T1_MEANS,
    ImageModel,
    LabelValue,
    bias_field,
    freesurfer_table,
    lower_resolution,
    read_table,
    structure_names,
)
from vnet.data.synthesis.writing import synthesize_dataset
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


PLAIN = {"bias": 0.0, "blur_mm": 0.0, "noise": 0.0}
TABLE = freesurfer_table()


def made_map(seed=0):
    """(26, 24, 22) canonical FreeSurfer values: skin, fluid, cortex about white matter on both sides, ventricles."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (26, 24, 22)), indexing="ij")
    radius = np.sqrt((z / 1.2) ** 2 + (y / 1.1) ** 2 + x**2) + 0.2 * rng.standard_normal(x.shape)
    labels = np.zeros(x.shape, np.uint16)
    for limit, (left, right) in ((9.5, (507, 507)), (8.5, (24, 24)), (7.5, (3, 42)), (5.5, (2, 41)), (2.5, (4, 43))):
        inside = radius < limit
        labels[inside] = np.where(x < 0, left, right)[inside]
    labels[12:14, 12, 6], labels[5, 12, 6], labels[5, 13, 6] = 25, 136, 62
    return labels


@pytest.fixture
def maps(tmp_path):
    folder = tmp_path / "maps"
    (folder / "labels").mkdir(parents=True)
    affine = np.array([[-1.0, 0, 0, 20], [0, 0, 1, -30], [0, -1, 0, 40], [0, 0, 0, 1]])  # LIA, as the published maps
    for number in range(2):
        turned = nib.orientations.apply_orientation(
            made_map(number).transpose(),
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("RAS"), nib.orientations.io_orientation(affine)
            ),
        )
        nib.Nifti1Image(turned, affine).to_filename(folder / f"labels/map_{number}.nii.gz")
    (folder / "LICENSE.txt").write_text("to be kept")
    return folder


def test_labels_are_the_structures_cropped_to_the_brain(maps, tmp_path):
    assert synthesize_dataset(maps, tmp_path / "data", name="brains") == 2
    dataset = open_dataset(tmp_path / "data")
    assert dataset.name == "brains"
    assert len(dataset.structures) == 33
    check_dataset(dataset, None, progress=False)
    label = read_label(dataset.cases[0].label)
    whole = made_map()
    brain = np.isin(whole, [value for value, meaning in TABLE.items() if meaning.structure not in (0, 24)])
    box = tuple(
        slice(max(line[0] - 4, 0), line[-1] + 5)
        for axis in range(3)
        for line in [np.flatnonzero(brain.any(tuple(other for other in range(3) if other != axis)))]
    )
    expected = np.zeros_like(whole)
    for value, meaning in TABLE.items():
        if meaning.structure:
            expected[whole == value] = dataset.structures.index(meaning.name)
    np.testing.assert_array_equal(label.array, expected[box])
    original = read_label(maps / "labels/map_0.nii.gz")
    corner = original.canonical_affine() @ [*(side.start for side in reversed(box)), 1]
    np.testing.assert_allclose(label.canonical_affine()[:, 3], corner)
    assert (tmp_path / "data/LICENSE.txt").read_text() == "to be kept"


def test_the_table_has_32_structures_and_both_sides_share_tissues():
    names = structure_names(TABLE)
    assert len(names) == 33
    assert (names[1], names[-1]) == ("left cerebral white matter", "right ventral DC")
    for name in names:
        if name.startswith("left "):
            left, right = (
                {meaning.tissue for meaning in TABLE.values() if meaning.name == f"{side} {name[5:]}"}
                for side in ("left", "right")
            )
            assert left == right != set()
    assert (TABLE[25].structure, TABLE[136].structure, TABLE[164].structure, TABLE[30].structure) == (2, 4, 44, 0)


def test_a_tissue_has_its_mean_and_spread():
    labels = np.repeat(np.array([0, 2, 41, 3, 42, 24], np.uint16), 4000).reshape(6, 40, 100)
    image = ImageModel(**PLAIN).draw(labels, TABLE, (1, 1, 1), np.random.default_rng(3)).astype(float)
    drawn = {int(values[0]): (one.mean(), one.std()) for values, one in zip(labels.reshape(6, -1), image, strict=True)}
    for value in (2, 3, 24):
        assert drawn[value][0] == pytest.approx(T1_MEANS[TABLE[value].tissue], abs=4 * 4)
        assert 3 * 0.95 < drawn[value][1] < 7 * 1.05
    for left, right in ((2, 41), (3, 42)):
        assert drawn[left] == pytest.approx(drawn[right], abs=0.4)  # 4000 voxels: standard errors of about 0.1
    assert drawn[0][0] > 0


def test_less_contrast_is_a_share_of_it():
    rng = np.random.default_rng
    full, third = (
        ImageModel(contrast_scale=scale).draw_tissues(["cortex", "csf", "other"], rng(5)) for scale in (1, 0.3)
    )
    for tissue in full[0]:
        assert third[0][tissue] - 110 == pytest.approx(0.3 * (full[0][tissue] - 110))
    assert full[1] == third[1]
    anything = ImageModel(contrast="random").draw_tissues(["cortex", "csf", "other"], rng(5))[0]
    assert anything["other"] == full[0]["other"]
    assert anything["cortex"] != full[0]["cortex"]


def test_a_blurred_edge_is_the_integral_of_a_gaussian():
    from scipy.special import erf

    table = {0: LabelValue(0, "background", "air"), 1: LabelValue(1, "block", "white matter")}
    labels = np.zeros((8, 9, 60), np.uint8)
    labels[..., 30:] = 1
    model = ImageModel(**PLAIN | {"blur_mm": 2.0})
    flat = ImageModel(**PLAIN)
    images = [
        np.mean([one.draw(labels, table, (1, 1, 0.5), np.random.default_rng(n)) for n in range(40)], (0, 1, 2))
        for one in (model, flat)
    ]
    low, high = images[1][:20].mean(), images[1][40:].mean()
    x = (np.arange(60) + 0.5 - 30) * 0.5  # mm from the edge
    np.testing.assert_allclose(
        images[0], low + (high - low) * (1 + erf(x / np.sqrt(2) / 2.0)) / 2, atol=0.03 * (high - low)
    )


def test_the_bias_field_is_smooth_positive_and_of_the_given_strength():
    field = bias_field((30, 40, 50), 0.3, np.random.default_rng(0))
    assert field.shape == (30, 40, 50)
    assert field.min() > 0
    logs = np.log([bias_field((4, 4, 4), 0.3, np.random.default_rng(n)) for n in range(300)])
    assert logs.std() == pytest.approx(0.3, rel=0.1)  # at the grid points
    steps = [np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)]
    assert max(steps) < 0.3
    assert (bias_field((5, 6, 7), 0.0, np.random.default_rng(0)) == 1).all()


def test_a_lower_resolution_keeps_ramps_and_the_grid_and_removes_detail():
    ramp = np.broadcast_to(np.arange(24.0)[:, None, None], (24, 5, 6)).copy()
    thick = lower_resolution(ramp, (1.0, 1.0, 1.0), (4.0, 1.0, 1.0))
    assert thick.shape == ramp.shape
    np.testing.assert_allclose(thick[7:-7], ramp[7:-7], atol=1e-9)
    stripes = np.broadcast_to((np.arange(24) % 2)[:, None, None], (24, 5, 6)).astype(float)
    assert lower_resolution(stripes, (1, 1, 1), (4, 1, 1))[6:-6].std() < 0.01
    np.testing.assert_array_equal(lower_resolution(stripes, (1, 1, 1), (0.5, 1, 1)), stripes)
    assert lower_resolution(stripes, (1, 1, 1), (100, 1, 1)).std() == pytest.approx(0, abs=1e-9)


def test_noise_is_added_with_its_standard_deviation():
    table = {0: LabelValue(0, "background", "cortex"), 1: LabelValue(1, "block", "csf")}
    labels = np.zeros((20, 20, 20), np.uint8)
    quiet, loud = (
        ImageModel(bias=0, blur_mm=3, noise=noise).draw(labels, table, (1, 1, 1), np.random.default_rng(0)).std()
        for noise in (0, 20)
    )
    assert loud == pytest.approx(np.hypot(quiet, 20), rel=0.05)


def test_numbers_depend_on_seed_and_case_alone(maps, tmp_path):
    synthesize_dataset(maps, tmp_path / "both", seed=4)
    (maps / "labels/map_0.nii.gz").unlink()
    synthesize_dataset(maps, tmp_path / "one", seed=4)
    synthesize_dataset(maps, tmp_path / "other", seed=5)
    same, alone, other = (
        read_image([tmp_path / name / "imagesTr/map_1.nii.gz"]).array for name in ("both", "one", "other")
    )
    np.testing.assert_array_equal(same, alone)
    assert (same != other).any()


def test_two_small_cases_have_the_committed_content(maps, tmp_path):
    """Of the default model and of one with low contrast: a change of these hashes changes the brain data sets."""
    found = {}
    for name, words in (("t1", []), ("low", ["--contrast_scale", "0.35", "--noise", "12", "--seed", "1"])):
        assert main(["synthesize", str(maps), str(tmp_path / name), "--name", name, *words]) == 0
        found[name] = check_dataset(open_dataset(tmp_path / name), None, progress=False).content_hash
    assert found == {
        "t1": "77cb968bc136142b43192d55c304760b391d1d6a9fa6071def1b83154d2e4f5c",
        "low": "7f418e9fabbb2b39cb0772e4e209c784037e7f13d2f4048974f2bc79ad264475",
    }


def test_four_folds_of_four(maps, tmp_path):
    for number in range(2, 16):
        (maps / f"labels/map_{number}.nii.gz").write_bytes((maps / "labels/map_1.nii.gz").read_bytes())
    assert synthesize_dataset(maps, tmp_path / "data") == 16
    dataset = open_dataset(tmp_path / "data")
    folds = [select_fold(dataset, number) for number in range(4)]
    assert [(len(fold.train), len(fold.val)) for fold in folds] == [(12, 4)] * 4
    assert sorted(name for fold in folds for name in fold.val) == sorted(case.name for case in dataset.cases)
    with pytest.raises(InputError, match="fold 4 does not exist"):
        select_fold(dataset, 4)


def entries(shift=0):
    """labels.json of the FreeSurfer table; `shift` moves structures and names down by so many rows."""
    rows = sorted(TABLE.items())
    tissues = {tissue: number for number, tissue in enumerate(sorted({meaning.tissue for _, meaning in rows}))}
    moved = [rows[max(place - shift, 0)][1] for place in range(len(rows))]
    return [
        {"value": value, "structure": to.structure, "name": to.name, "tissue": tissues[meaning.tissue]}
        for (value, meaning), to in zip(rows, moved, strict=True)
    ]


def test_a_table_of_ones_own_is_read(maps, tmp_path):
    (maps / "labels.json").write_text(json.dumps(entries()))
    table = read_table(maps / "labels.json")
    assert {value: meaning.structure for value, meaning in table.items()} == {
        value: meaning.structure for value, meaning in TABLE.items()
    }
    synthesize_dataset(maps, tmp_path / "own", table=maps / "labels.json")
    synthesize_dataset(maps, tmp_path / "known", table="freesurfer")
    for case in open_dataset(tmp_path / "own").cases:
        other = tmp_path / "known/labelsTr" / case.label.name
        np.testing.assert_array_equal(read_label(case.label).array, read_label(other).array)


def test_a_table_with_shifted_columns_is_refused_or_passed_over_with_a_warning(maps, tmp_path, capsys):
    """Values would carry the names of their neighbours: white matter that of the ventricle."""
    (maps / "labels.json").write_text(json.dumps(entries(shift=1)))
    with pytest.raises(
        InputError, match=r"labels.json: \d+ values are numbers of structures that they do not belong to"
    ):
        synthesize_dataset(maps, tmp_path / "data", table=maps / "labels.json")
    assert not (tmp_path / "data").exists()
    synthesize_dataset(maps, tmp_path / "data")
    out = capsys.readouterr().out
    assert "the columns are shifted; correct them; the values are read as FreeSurfer's numbers" in out
    synthesize_dataset(maps, tmp_path / "known", table="freesurfer")
    content = [
        check_dataset(open_dataset(tmp_path / name), None, progress=False).content_hash for name in ("data", "known")
    ]
    assert content[0] == content[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contrast", "t2"], r"contrast must be one of \('t1', 'random'\), got 't2'"),
        (["--noise", "-1"], "noise must be 0 or more, got -1.0"),
        (["--bias", "nan"], "bias must be 0 or more, got nan"),
        (["--resolution_mm", "0", "1", "1"], "resolution_mm must be positive, got 0.0"),
        (["--seed", "-1"], "seed must be 0 or more, got -1"),
        (["--table", "none.json"], r"none.json: cannot be read"),
    ],
)
def test_words_that_cannot_be_followed(words, message, maps, tmp_path):
    with pytest.raises(InputError, match=message):
        main(["synthesize", str(maps), str(tmp_path / "data"), *words])
    assert not (tmp_path / "data").exists()


def test_maps_that_cannot_serve_are_refused(maps, tmp_path):
    with pytest.raises(InputError, match="maps: is there already; name a new folder"):
        synthesize_dataset(maps, maps)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no label maps"):
        synthesize_dataset(tmp_path / "empty", tmp_path / "data")
    path = maps / "labels/map_1.nii.gz"
    labels = np.zeros((5, 6, 7), np.uint16)
    nib.Nifti1Image(labels, np.eye(4)).to_filename(path)
    with pytest.raises(InputError, match="map_1.nii.gz: holds no structure"):
        synthesize_dataset(maps, tmp_path / "data")
    labels[0, 0, 0] = 999
    nib.Nifti1Image(labels, np.eye(4)).to_filename(path)
    with pytest.raises(InputError, match=r"map_1.nii.gz: values \[999\] are not in the table; add them"):
        synthesize_dataset(maps, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / ".data.part").exists()
