"""Unusual files that nibabel and SimpleITK both read alike are read: SimpleITK agrees on grid and voxels of each."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from vnet.core.errors import InputError
from vnet.data.nifti import read_header
from vnet.data.volumes import read_image, read_label, write_labels

RNG = np.random.default_rng(0)
SHAPE = (5, 4, 3)  # x, y, z
VOXELS = RNG.integers(0, 3, SHAPE).astype(np.uint8)


def oblique(degrees=20.0, spacing=(0.5, 2.0, 3.0), origin=(10.0, -20.0, 30.0)):
    a = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return affine


def agree(path, volume):
    """SimpleITK's voxels lie at the places, and have the values, of the volume's."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)  # (z, y, x[, c])
    four = array[..., None] if image.GetNumberOfComponentsPerPixel() == 1 else array
    if image.GetDimension() == 4:
        four = np.moveaxis(array, 0, -1)
        image = image[..., 0]
    ours = volume.array if volume.array.ndim == 4 else volume.array[None]
    back = np.stack([volume.restore(one) for one in ours], -1)  # file axes (x, y, z, c)
    np.testing.assert_allclose(four.transpose(2, 1, 0, 3), back, rtol=1e-6, atol=1e-6)
    for index in ((0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (4, 3, 2)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)  # LPS
        np.testing.assert_allclose((volume.affine @ (*index, 1))[:3], (-x, -y, z), rtol=1e-5, atol=1e-5)


def texts(volume):
    return [(remark.topic, remark.text, remark.detail) for remark in volume.remarks]


def nifti_bytes(voxels, affine, **fields):
    image = nib.Nifti1Image(voxels, None)
    image.header.set_sform(affine, code=fields.pop("sform_code", 0))
    image.header.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, count=1)
    for name, value in fields.items():
        header[name][0] = value
    return bytes(raw)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_qfac_of_zero_with_the_orientation_in_the_qform_alone(ending, tmp_path):
    affine = oblique()
    content = nifti_bytes(VOXELS, affine, pixdim=[0, 0.5, 2, 3, 0, 0, 0, 0])
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".nii.gz" else content)
    volume = read_image([path])
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert texts(volume) == [("header", "pixdim[0] is 0 and read as 1, as the standard says", "")]
    agree(path, volume)
    write_labels(tmp_path / "out.nii.gz", volume.array[0].astype(np.uint8), volume)
    agree(tmp_path / "out.nii.gz", read_label(tmp_path / "out.nii.gz"))


def test_what_simpleitk_writes_is_read(tmp_path):
    image = sitk.GetImageFromArray(VOXELS.transpose())
    image.SetSpacing((0.5, 2.0, 3.0))
    a = np.deg2rad(20)
    image.SetDirection((np.cos(a), -np.sin(a), 0, np.sin(a), np.cos(a), 0, 0, 0, 1))
    image.SetOrigin((-10, 20, 30))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    agree(tmp_path / "scan.nii.gz", read_label(tmp_path / "scan.nii.gz"))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_header_extensions_of_any_size(ending, tmp_path):
    """Twenty megabytes of comment before the voxels."""
    size = 20 * 2**20
    content = nifti_bytes(VOXELS, oblique(), sform_code=1, vox_offset=352 + size)
    extension = struct.pack("<4B2i", 1, 0, 0, 0, size, 6) + bytes(size - 8)
    content = content[:348] + extension + content[352:]
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(content, 1) if ending == ".nii.gz" else content)
    volume = read_image([path])
    np.testing.assert_array_equal(volume.restore(volume.array[0]), VOXELS)
    assert texts(volume) == [("header", "header extensions are skipped", "20.0 MiB")]
    agree(path, volume)


@pytest.mark.parametrize(("slope", "intercept"), [(0.0035, 0.0), (0.007, 0.0), (0.0035, -0.5)])
def test_whole_labels_that_went_through_scaled_integers(slope, intercept, tmp_path):
    stored = np.rint((VOXELS - intercept) / slope).astype(np.int16)
    image = nib.Nifti1Image(stored, oblique())
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(tmp_path / "label.nii.gz")
    near = np.asarray(nib.load(tmp_path / "label.nii.gz").dataobj)
    assert 0 < np.abs(near - VOXELS).max() < 0.01
    label = read_label(tmp_path / "label.nii.gz")
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.restore(label.array), VOXELS)
    ((topic, text, detail),) = texts(label)
    assert (topic, text) == ("label", "label values are rounded to whole numbers")
    assert float(detail.removeprefix("by up to ")) == pytest.approx(np.abs(near - VOXELS).max(), rel=0.05)
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "label.nii.gz")))
    np.testing.assert_array_equal(np.rint(read).transpose(), label.restore(label.array))


@pytest.mark.parametrize("value", [0.996, 1.00002, 2.9999999, -0.004, 65535.004])
def test_labels_within_a_hundredth_of_whole_numbers_are_rounded(value, tmp_path):
    voxels = np.zeros(SHAPE)
    voxels[1, 2, 1] = value
    nib.Nifti1Image(voxels, oblique()).to_filename(tmp_path / "label.nii")
    assert read_label(tmp_path / "label.nii").array[1, 2, 1] == round(value)


@pytest.mark.parametrize("value", [0.98, 1.0101, -0.011])
def test_labels_further_off_are_refused(value, tmp_path):
    voxels = np.zeros(SHAPE)
    voxels[1, 2, 1] = value
    nib.Nifti1Image(voxels, oblique()).to_filename(tmp_path / "label.nii")
    with pytest.raises(InputError, match="not whole; resample with nearest|must lie in 0 to 65535"):
        read_label(tmp_path / "label.nii")


@pytest.mark.parametrize("degrees", [0.0, 20.0, 45.0, 70.0])
@pytest.mark.parametrize("axes", [[(0, -1), (1, -1), (2, 1)], [(2, 1), (0, -1), (1, 1)], [(1, 1), (0, 1), (2, -1)]])
def test_a_label_in_other_axes_on_its_images_grid(axes, degrees, tmp_path):
    """At 45 degrees image and label may each be nearest to other axes of the body."""
    image = nib.Nifti1Image(RNG.normal(size=SHAPE).astype(np.float32), oblique(degrees))
    label = nib.Nifti1Image(VOXELS, oblique(degrees)).as_reoriented(np.array(axes))
    image.to_filename(tmp_path / "scan.nii")
    label.to_filename(tmp_path / "label.nii")
    volume = read_image([tmp_path / "scan.nii"])
    read = read_label(tmp_path / "label.nii", volume)
    np.testing.assert_array_equal(volume.restore(read.array), VOXELS)
    ((topic, text, detail),) = texts(read)
    assert (topic, text) == ("orientation", "stored along other axes than its image, on the same grid: turned")
    if degrees != 45:  # there either code is right
        assert detail == f"{''.join(nib.aff2axcodes(label.affine))}, the other {volume.orientation}"
    agree(tmp_path / "label.nii", read_label(tmp_path / "label.nii"))
    # SimpleITK, asked at the places of the image's voxels, finds the same labels
    theirs = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "label.nii")),
        sitk.ReadImage(str(tmp_path / "scan.nii")),
        sitk.Transform(),
        sitk.sitkNearestNeighbor,
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs).transpose(), VOXELS)


def test_a_channel_in_other_axes_on_the_first_ones_grid(tmp_path):
    one, two = (nib.Nifti1Image(RNG.normal(size=SHAPE).astype(np.float32), oblique()) for _ in range(2))
    one.to_filename(tmp_path / "a_0000.nii")
    two.as_reoriented(np.array([(2, 1), (0, -1), (1, 1)])).to_filename(tmp_path / "a_0001.nii")
    volume = read_image([tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"])
    for channel, image in enumerate((one, two)):
        np.testing.assert_array_equal(volume.restore(volume.array[channel]), image.get_fdata(dtype=np.float32))


def test_a_label_on_another_grid_is_told_to_be_resampled(tmp_path):
    nib.Nifti1Image(VOXELS, oblique()).to_filename(tmp_path / "scan.nii")
    nib.Nifti1Image(VOXELS, oblique(spacing=(0.5, 2.0, 3.5))).to_filename(tmp_path / "label.nii")
    with pytest.raises(InputError, match="affine differs from that of its image, corners lie .*; resample the label"):
        read_label(tmp_path / "label.nii", read_image([tmp_path / "scan.nii"]))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_vector_files_of_itk(ending, tmp_path):
    """x, y, z, 1, c: what SimpleITK writes of an image with several components."""
    voxels = RNG.normal(size=(*SHAPE, 2)).astype(np.float32)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0, 3), isVector=True)
    image.SetSpacing((0.5, 2.0, 3.0))
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(image, str(path))
    assert nib.load(path).shape == (*SHAPE, 1, 2)
    volume = read_image([path])
    np.testing.assert_array_equal(volume.restore(volume.array[1]), voxels[..., 1])
    assert [text for text in texts(volume) if text[0] == "channels"] == [
        ("channels", "vectors (5-D: x, y, z, 1, channels) are read as channels", "")
    ]
    agree(path, volume)
    assert read_header(path).channels == 2


def test_four_dimensional_files_hold_channels_along_the_last_axis(tmp_path):
    voxels = RNG.normal(size=(*SHAPE, 2)).astype(np.float32)
    nib.Nifti1Image(voxels, oblique()).to_filename(tmp_path / "BRATS_0001.nii.gz")
    agree(tmp_path / "BRATS_0001.nii.gz", read_image([tmp_path / "BRATS_0001.nii.gz"]))


@pytest.mark.parametrize("unit", ["micron", "meter", "mm", "unknown"])
def test_units_are_those_of_simpleitk(unit, tmp_path):
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), code=1)
    image.header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), code=1)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "scan.nii")
    spacing = sitk.ReadImage(str(tmp_path / "scan.nii")).GetSpacing()
    assert read_image([tmp_path / "scan.nii"]).spacing_mm[::-1] == pytest.approx(spacing)


def test_a_sheared_file_is_read_here_and_refused_by_simpleitk(tmp_path):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.deg2rad(25))
    image = nib.Nifti1Image(VOXELS, None)
    image.header.set_sform(affine, code=1)
    image.to_filename(tmp_path / "scan.nii")
    with pytest.raises(RuntimeError, match=r"orthonormal|orthogonal"):
        sitk.ReadImage(str(tmp_path / "scan.nii"))
    np.testing.assert_allclose(read_image([tmp_path / "scan.nii"]).affine, affine)
