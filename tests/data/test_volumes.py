"""Orientation, grids, and writing labels and maps back."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from vnet.core.errors import InputError
from vnet.data.affines import Grid, GridFault, grid_fault
from vnet.data.volumes import read_image, read_label, volume_from_array, write_labels, write_scaled

AXES = ["".join(letters) for order in permutations(("RL", "AP", "SI")) for letters in product(*order)]
CANONICAL = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)  # z, y, x
UPRIGHT = np.eye(3)
SPACING = np.array([3.0, 2.0, 0.5])  # z, y, x


def stored(canonical, spacing_zyx, axes, oblique=UPRIGHT, origin=(10.0, -20.0, 30.0)):
    """(voxels, affine) of a file whose axes run along `axes`, built by hand: no function of the package or nibabel."""
    voxels, directions = canonical.transpose(2, 1, 0), np.diag(spacing_zyx[::-1]).astype(float)
    origin = np.array(origin)
    order, flips = [], []
    for letter in axes:
        axis, positive = next((i, letter == pair[0]) for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        order.append(axis)
        flips.append(not positive)
    affine = np.eye(4)
    for place, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        affine[:3, place] = -directions[:, axis] if flip else directions[:, axis]
        if flip:
            origin = origin + directions[:, axis] * (voxels.shape[axis] - 1)
    affine[:3, 3] = origin
    affine[:3] = oblique @ affine[:3]
    turned = voxels.transpose(order)
    return turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].copy(), affine


@pytest.mark.parametrize("axes", AXES)
def test_every_orientation_reads_as_the_same_anatomy_and_writes_back(axes, tmp_path, save):
    voxels, affine = stored(CANONICAL, SPACING, axes)
    path = save(tmp_path / "scan.nii.gz", voxels, affine)
    image, label = read_image([path]), read_label(path)
    np.testing.assert_array_equal(image.array, CANONICAL[None].astype(np.float32))
    np.testing.assert_array_equal(label.array, CANONICAL)
    assert image.spacing_mm == pytest.approx(SPACING)
    assert image.orientation == axes
    expected = np.diag([0.5, 2.0, 3.0, 1.0])
    expected[:3, 3] = 10, -20, 30
    np.testing.assert_allclose(image.canonical_affine(), expected, atol=1e-6)
    write_labels(tmp_path / "out.nii.gz", label.array, image)
    written, original = nib.load(tmp_path / "out.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), voxels)
    np.testing.assert_array_equal(written.affine, original.affine)


@settings(deadline=None, max_examples=40)
@given(axes=st.sampled_from(AXES), angles=st.tuples(*[st.floats(-0.4, 0.4)] * 3))
def test_oblique_copies_read_alike(axes, angles):
    a, b, c = angles
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    turn_y = np.array([[np.cos(c), 0, -np.sin(c)], [0, 1, 0], [np.sin(c), 0, np.cos(c)]])
    voxels, affine = stored(CANONICAL, SPACING, axes, oblique=turn_z @ turn_x @ turn_y)
    volume = volume_from_array(voxels, affine)
    np.testing.assert_array_equal(volume.array[0], CANONICAL)
    assert volume.spacing_mm == pytest.approx(SPACING)
    np.testing.assert_array_equal(volume.restore(CANONICAL), voxels)


def test_written_labels_keep_the_header_of_the_input(tmp_path, save):
    voxels, affine = stored(CANONICAL, SPACING, "LPS")
    image = nib.Nifti1Image(voxels.astype(np.int16), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scanner's own words"
    image.to_filename(tmp_path / "scan.nii")
    volume = read_image([tmp_path / "scan.nii"])
    write_labels(tmp_path / "deep/out.nii.gz", np.zeros((3, 4, 5), np.uint8), volume)
    before, after = nib.load(tmp_path / "scan.nii").header, nib.load(tmp_path / "deep/out.nii.gz").header
    for key in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "pixdim", "xyzt_units", "descrip"):
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    assert after.get_data_dtype() == np.uint8


def test_labels_of_a_four_dimensional_image_are_three_dimensional(tmp_path, save):
    save(tmp_path / "scan.nii.gz", np.full((5, 4, 3, 2), [1, 2], np.float32))
    volume = read_image([tmp_path / "scan.nii.gz"])
    assert volume.array.shape == (2, 3, 4, 5)
    assert volume.array[:, 0, 0, 0].tolist() == [1, 2]
    write_labels(tmp_path / "out.nii.gz", CANONICAL, volume)
    assert nib.load(tmp_path / "out.nii.gz").shape == (5, 4, 3)


def test_a_failed_write_leaves_what_was_there(tmp_path, save, monkeypatch):
    volume = volume_from_array(np.zeros((5, 4, 3)), np.eye(4))
    write_labels(tmp_path / "out.nii.gz", CANONICAL, volume)
    before = (tmp_path / "out.nii.gz").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_filename", full)
    with pytest.raises(OSError, match="No space"):
        write_labels(tmp_path / "out.nii.gz", CANONICAL + 1, volume)
    assert (tmp_path / "out.nii.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii.gz"]


def test_channels_from_files_equal_one_file_of_channels(tmp_path, save):
    voxels = np.random.default_rng(0).normal(size=(5, 4, 3, 2)).astype(np.float32)
    together = read_image([save(tmp_path / "both.nii.gz", voxels)])
    apart = read_image([save(tmp_path / f"{c}.nii.gz", voxels[..., c]) for c in range(2)])
    np.testing.assert_array_equal(together.array, apart.array)


def test_channels_on_other_grids_are_refused(tmp_path, save):
    one = save(tmp_path / "0.nii.gz", np.zeros((5, 4, 3), np.float32))
    two = save(tmp_path / "1.nii.gz", np.zeros((5, 4, 3), np.float32), np.diag([1, 1, 2, 1]))
    with pytest.raises(InputError, match=r"1\.nii\.gz: affine differs from that of channel 0, corners lie 3 mm apart"):
        read_image([one, two])


def test_scaled_integers_are_read_with_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    image.to_filename(tmp_path / "scan.nii.gz")
    expected = np.asarray(nib.load(tmp_path / "scan.nii.gz").dataobj).transpose()
    np.testing.assert_array_equal(read_image([tmp_path / "scan.nii.gz"]).array[0], expected.astype(np.float32))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_every_stored_type_reads_as_nibabel_reads_it(kind, order, dtype, tmp_path):
    voxels = np.arange(60).reshape(5, 4, 3).astype(order + dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype)
    kind(voxels, np.eye(4), header).to_filename(tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_label(tmp_path / "scan.nii").array, voxels.transpose())


def test_a_flat_image_is_a_volume_of_one_slice(tmp_path, save):
    path = save(tmp_path / "flat.nii.gz", np.arange(20, dtype=np.int16).reshape(5, 4))
    assert read_image([path]).array.shape == (1, 1, 4, 5)


def test_labels_beyond_255_stay_whole(tmp_path, save):
    voxels = np.zeros((5, 4, 3), np.float64)
    voxels[2, 1, 0] = 1234
    label = read_label(save(tmp_path / "label.nii.gz", voxels))
    assert label.array.dtype == np.uint16
    assert label.array[0, 1, 2] == 1234


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"label\.nii\.gz: 1 voxels hold label values that are not whole"),
        (-1, r"label values must lie in 0 to 65535, got -1.0 to 0.0"),
        (70000, r"label values must lie in 0 to 65535"),
        (np.nan, r"the label holds NaN or infinite voxels"),
    ],
)
def test_labels_that_are_no_labels_are_refused(value, message, tmp_path, save):
    voxels = np.zeros((5, 4, 3), np.float32)
    voxels[0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        read_label(save(tmp_path / "label.nii.gz", voxels))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_not_finite_are_refused(value, tmp_path, save):
    voxels = np.zeros((5, 4, 3))
    voxels[:2, 0, 0] = value
    with pytest.raises(InputError, match=r"scan\.nii\.gz: 2 voxels are NaN or infinite"):
        read_image([save(tmp_path / "scan.nii.gz", voxels)])


def test_a_four_dimensional_label_is_refused(tmp_path, save):
    with pytest.raises(InputError, match=r"4-D \(5, 4, 3, 2\) where 3-D is due"):
        read_label(save(tmp_path / "label.nii.gz", np.zeros((5, 4, 3, 2), np.uint8)))


@pytest.mark.parametrize(
    ("image", "affine", "message"),
    [
        (np.zeros((5, 4)), np.eye(4), r"image must be real \(X, Y, Z\)"),
        (np.zeros((5, 0, 3)), np.eye(4), r"got float64 \(5, 0, 3\)"),
        (
            np.zeros((5, 4, 3)),
            np.diag([1, 0, 1, 1]),
            r"affine must be invertible .* singular \(spacing \(1.0, 0.0, 1.0\)",
        ),
        (np.zeros((5, 4, 3)), np.full((4, 4), np.nan), "not finite"),
        (np.full((5, 4, 3), np.nan), np.eye(4), "image must be finite"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(image, affine, message):
    with pytest.raises(ValueError, match=message):
        volume_from_array(image, affine)


def test_labels_of_another_shape_or_type_are_refused(tmp_path):
    volume = volume_from_array(np.zeros((5, 4, 3)), np.eye(4))
    with pytest.raises(ValueError, match=r"labels must be \(3, 4, 5\), got \(5, 4, 3\)"):
        volume.restore(np.zeros((5, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="integer type, got float32"):
        write_labels(tmp_path / "out.nii.gz", np.zeros((3, 4, 5), np.float32), volume)
    with pytest.raises(InputError, match=r"out\.png: labels are written as \.nii"):
        write_labels(tmp_path / "out.png", CANONICAL, volume)


def test_grids_may_differ_by_rounding_only():
    grid = Grid(np.eye(4), (5, 4, 3))
    shifted = np.eye(4)
    shifted[0, 3] = 0.2
    assert grid_fault(Grid(np.eye(4) + 1e-4, (5, 4, 3)), grid) is None
    fault = grid_fault(Grid(shifted, (5, 4, 3)), grid)
    assert fault == GridFault("affine differs from that of the other, corners lie 0.2 mm apart")
    small = Grid(np.eye(4), (3, 4, 5))
    assert grid_fault(small, grid, "its image") == GridFault("shape (3, 4, 5) differs from (5, 4, 3) of its image")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL"])
def test_a_map_lies_as_its_image_does(axes, ending, tmp_path):
    affine = np.diag([1.5, 2, 3, 1]) @ inv_ornt_aff(
        ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(axes)), (3, 4, 5)
    )
    like = volume_from_array(np.zeros((3, 4, 5), np.float32), affine)
    d, h, w = like.array.shape[1:]
    values = np.random.default_rng(0).integers(0, 2**16, (2, d, h, w), dtype=np.uint16)
    path = tmp_path / f"map{ending}"
    write_scaled(path, [(0, 1, values[:, :1]), (1, d, values[:, 1:])], like, dtype=np.uint16, channels=2)
    found = nib.load(path)
    assert found.shape == (3, 4, 5, 2)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    for channel in range(2):
        np.testing.assert_allclose(found.get_fdata()[..., channel], like.restore(values[channel]) / 65535, atol=1e-6)
    np.testing.assert_allclose(read_image([path]).array, values / 65535, atol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_map_keeps_the_header_of_its_image(tmp_path):
    scan = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([-2, -2, 3, 1]))
    scan.header["descrip"] = b"scanner"
    scan.header.set_slope_inter(2, -1000)
    nib.save(scan, tmp_path / "scan.nii")
    like = read_image([tmp_path / "scan.nii"])
    write_scaled(
        tmp_path / "map.nii.gz", [(0, 5, np.full((1, 5, 4, 3), 255, np.uint8))], like, dtype=np.uint8, channels=1
    )
    found = nib.load(tmp_path / "map.nii.gz")
    assert found.shape == (3, 4, 5)
    assert found.header["descrip"] == b"scanner"
    assert found.header["sform_code"] == nib.load(tmp_path / "scan.nii").header["sform_code"]
    np.testing.assert_allclose(found.get_fdata(), 1, atol=1e-6)
    np.testing.assert_array_equal(found.affine, scan.affine)


def test_a_map_that_fails_leaves_nothing(tmp_path):
    like = volume_from_array(np.zeros((3, 4, 5), np.float32), np.eye(4))

    def broken():
        yield 0, 1, np.zeros((1, 1, 4, 3), np.uint8)
        raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        write_scaled(tmp_path / "map.nii.gz", broken(), like, dtype=np.uint8, channels=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"map.npz: maps are written as .nii or .nii.gz"):
        write_scaled(tmp_path / "map.npz", [], like, dtype=np.uint8, channels=1)
