"""DICOM in and out: voxels lie where the slices' headers say, read back by hand and by SimpleITK."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures import RUN, lps_affine, oblique, write_series
from vnet.core.errors import InputError, RunFault
from vnet.data.affines import canonical
from vnet.data.case_files import list_inputs
from vnet.data.colours import OKABE_ITO
from vnet.data.dicom import Series, read_series, structure_concepts, write_segmentation
from vnet.data.volumes import Volume
from vnet.inference.label_files import predict_files

pytestmark = pytest.mark.dicom

SHAPE = (7, 6, 5)  # columns, rows, slices
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
STRUCTURES = ("background", "liver", "left kidney", "vessel")


def noise(shape: Sequence[int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2000, tuple(shape))


def the_series(folder: Path) -> Series:
    (series,) = list_inputs(folder, 1).series.values()
    return series


def places_mm(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """((N, 4) mm in DICOM's axes, (N,) intensities) of the voxels of a volume, on its own axes."""
    own = volume.restore(volume.array[0])
    index = np.argwhere(np.ones(own.shape))
    return np.c_[index, np.ones(len(index))] @ (TO_LPS @ volume.affine).T, own[tuple(index.T)]


@pytest.mark.parametrize("tilt", [0.0, 0.3], ids=["upright", "tilted gantry"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 0, 4, 1, 2]], ids=["up", "down", "mixed"])
def test_voxels_lie_where_the_headers_say(order: list[int], tilt: float, tmp_path: Path) -> None:
    affine, voxels = lps_affine(tilt=tilt), noise()
    series = the_series(write_series(tmp_path / "scan", voxels, affine, order=order))
    assert [file.name for file in series.files] == [f"IM{order.index(k):04d}" for k in range(5)]
    mm, intensities = places_mm(read_series(series))
    index = mm @ np.linalg.inv(affine).T
    whole = np.rint(index).astype(int)[:, :3]
    np.testing.assert_allclose(index[:, :3], whole, atol=1e-4)
    assert len(np.unique(whole, axis=0)) == np.prod(SHAPE)
    np.testing.assert_array_equal(intensities, voxels[tuple(whole.T)] - 1024)
    warnings = [finding.what for finding in series.findings()]
    assert len(warnings) == (tilt > 0)
    assert all("the axes are not at right angles (gantry tilt?)" in what for what in warnings)


@pytest.mark.parametrize("turn", [np.eye(3), oblique(), oblique(2.0, 1.4)], ids=["axial", "oblique", "coronal"])
def test_simpleitk_reads_the_same_places(turn: np.ndarray, tmp_path: Path) -> None:
    import SimpleITK as sitk

    folder = write_series(tmp_path / "scan", noise(), lps_affine(turn), order=[4, 3, 2, 1, 0])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    mm, intensities = places_mm(read_series(the_series(folder)))
    index = [image.TransformPhysicalPointToIndex(point[:3].tolist()) for point in mm]
    np.testing.assert_array_equal([image[place] for place in index], intensities)
    apart = np.abs([image.TransformIndexToPhysicalPoint(place) for place in index] - mm[:, :3])
    assert apart.max() < 1e-3


def segmented_points(path: Path) -> dict[int, set[tuple[int, int, int]]]:
    """Segment number to the places of its pixels in hundredths of a mm, from the frames and their headers by hand."""
    import pydicom

    header = pydicom.dcmread(path)
    frames = header.pixel_array.reshape(-1, header.Rows, header.Columns)
    shared = header.SharedFunctionalGroupsSequence[0]
    cosines = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    down_mm, across_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points: dict[int, set[tuple[int, int, int]]] = {}
    for frame, group in zip(frames, header.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        mm = origin + np.outer(columns * across_mm, cosines[0]) + np.outer(rows * down_mm, cosines[1])
        points.setdefault(number, set()).update(map(tuple, np.rint(100 * mm).astype(int).tolist()))
    return points


def written_segmentation(folder: Path, labels: np.ndarray, codes: dict[str, Any], *, tilt: float = 0.0) -> Path:
    """The segmentation of a reversed series, of labels (columns, rows, slices) given in the order of its slices."""
    affine = lps_affine(tilt=tilt)
    series = the_series(write_series(folder / "scan", noise(), affine, order=[4, 3, 2, 1, 0]))
    volume = read_series(series)
    mm, _ = places_mm(volume)
    index = np.rint(mm @ np.linalg.inv(affine).T).astype(int)[:, :3]
    own = labels[tuple(index.T)].reshape(volume.shape)
    path = folder / "scan_seg.dcm"
    write_segmentation(
        path, canonical(own, volume.affine), volume, series, STRUCTURES, structure_concepts(STRUCTURES, codes), "1.0"
    )
    return path


@pytest.mark.parametrize("tilt", [0.0, 0.3], ids=["upright", "tilted gantry"])
def test_a_segmentation_has_each_label_at_its_place(tilt: float, tmp_path: Path) -> None:
    labels = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    labels[labels == 3] = 0
    points = segmented_points(written_segmentation(tmp_path, labels, {}, tilt=tilt))
    assert sorted(points) == [1, 2]
    for value in (1, 2):
        index = np.argwhere(labels == value)
        mm = np.c_[index, np.ones(len(index))] @ lps_affine(tilt=tilt).T
        assert points[value] == set(map(tuple, np.rint(100 * mm[:, :3]).astype(int).tolist()))


def test_segments_have_names_colours_and_codes(tmp_path: Path) -> None:
    import pydicom

    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 3, 4] = 2
    codes = {
        "liver": [10200004, "SCT", "Liver"],
        "vessel": ["108369006", "SCT", "Neoplasm", "49755003", "SCT", "Morphologically Altered Structure"],
    }
    path = written_segmentation(tmp_path, labels, codes)
    header, source = pydicom.dcmread(path), pydicom.dcmread(tmp_path / "scan/IM0000")
    assert header.Modality == "SEG"
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert header[name].value == source[name].value
    assert header.SeriesInstanceUID != source.SeriesInstanceUID
    found = []
    for segment in header.SegmentSequence:
        kind, category = segment.SegmentedPropertyTypeCodeSequence[0], segment.SegmentedPropertyCategoryCodeSequence[0]
        found.append((segment.SegmentNumber, segment.SegmentLabel, kind.CodeValue, category.CodeMeaning))
        assert kind.CodingSchemeDesignator == "SCT"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert found == [
        (1, "liver", "10200004", "Anatomical Structure"),
        (2, "left kidney", "85756007", "Tissue"),
        (3, "vessel", "108369006", "Morphologically Altered Structure"),
    ]
    # lightness of orange (230, 159, 0) in CIELab: 71, of 100 as 65535
    assert OKABE_ITO[0] == (230, 159, 0)
    assert header.SegmentSequence[0].RecommendedDisplayCIELabValue[0] == pytest.approx(0.71 * 65535, abs=700)
    with pytest.raises(
        InputError, match=r"inference.codes: heart is no structure; they are liver, left kidney, vessel"
    ):
        structure_concepts(STRUCTURES, {"heart": [1, "SCT", "Heart"]})


def test_labels_of_nothing_are_an_empty_frame_a_structure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    points = segmented_points(written_segmentation(tmp_path, np.zeros(SHAPE, np.uint8), {}))
    assert points == {1: set(), 2: set(), 3: set()}
    assert capfd.readouterr().err == ""


def localizer(folder: Path) -> None:
    write_series(folder, noise((7, 6, 3)), lps_affine(np.eye(3)), SeriesNumber=1, SeriesDescription="scout")


def mixed(folder: Path, **changes: Any) -> None:
    """More slices of the same series, further up."""
    import pydicom

    uid = str(pydicom.dcmread(folder / "IM0000").SeriesInstanceUID)
    affine = changes.pop("affine", lps_affine() @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 5], [0, 0, 0, 1.0]]))
    write_series(folder, noise(changes.pop("shape", SHAPE)), affine, SeriesInstanceUID=uid, **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            localizer,
            r'holds 2 series: number 3 "thin" CT \(5 files\), number 1 "scout" CT \(3 files\); give the one to label a',
        ),
        (lambda folder: mixed(folder, shape=(9, 6, 5)), r"slices differ in size: 6x7 and 6x9 \(a localizer among them"),
        (
            lambda folder: mixed(folder, affine=lps_affine(np.eye(3))),
            "slices differ in orientation: .*; keep the slices",
        ),
        (lambda folder: mixed(folder, PixelSpacing=["0.8", "0.8"]), "differ in pixel spacing: 0.7x0.7 and 0.8x0.8"),
        (
            lambda folder: mixed(folder, affine=lps_affine()),
            r"IM000\d and IM000\d lie at one place \(time points, echoes",
        ),
        (lambda folder: (folder / "IM0002").unlink(), r"lie 5 to 10 mm apart \(one is missing\?\); copy the whole"),
        (lambda folder: [(folder / f"IM000{k}").unlink() for k in range(4)], "holds one slice, IM0004; copy the whole"),
        (
            lambda folder: mixed(folder, ImagePositionPatient=""),
            "IM0005: has no ImagePositionPatient, so it is no slice",
        ),
        (lambda folder: mixed(folder, NumberOfFrames=3), "IM0005: has several frames in a file, which is not read"),
        (lambda folder: mixed(folder, SamplesPerPixel=3), "IM0005: is a colour image; take it out of the folder"),
    ],
    ids=["series", "size", "orientation", "spacing", "copies", "gap", "single", "no place", "frames", "colour"],
)
def test_what_is_no_volume_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", noise(), lps_affine())
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        list_inputs(folder, 1)
    assert len(caught.value.faults) == 1


def test_other_files_beside_a_series_are_passed_over(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan", noise(), lps_affine())
    (folder / "notes.txt").write_text("words")
    (folder / "._IM0000").write_bytes(bytes(128) + b"DICM")
    write_series(folder, noise(), lps_affine(), Modality="SEG")  # labels of an earlier prediction
    write_series(folder, noise(), lps_affine(), Rows=None)  # a report
    series = the_series(folder)
    assert [file.name for file in series.files] == [f"IM000{k}" for k in range(5)]
    np.testing.assert_array_equal(np.sort(read_series(series).array.ravel()), np.sort(noise().ravel() - 1024.0))


def test_what_lacks_to_read_dicom_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_series(tmp_path / "scan", noise(), lps_affine())
    with pytest.raises(
        InputError, match="a DICOM series is one channel, the network reads 2; convert each with dcm2niix"
    ):
        list_inputs(folder, 2)
    (folder / "IM0000").rename(folder / "IM0000.dcm")
    with pytest.raises(InputError, match=r"IM0000.dcm: DICOM is not read; name the folder of its series"):
        list_inputs(folder / "IM0000.dcm", 1)
    monkeypatch.setattr("vnet.data.dicom.find_dcm2niix", lambda: None)
    with pytest.raises(InputError, match=r"which this Python lacks: pip install 'pointrend\[dicom\]', or convert"):
        list_inputs(folder, 1)


def test_a_failing_converter_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = the_series(write_series(tmp_path / "scan", noise(), lps_affine()))
    program = tmp_path / "dcm2niix"
    program.write_text("#!/bin/sh\necho 'Error: no space'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("vnet.data.dicom.find_dcm2niix", lambda: str(program))
    with pytest.raises(InputError, match=r"dcm2niix did not make a volume of it \(Error: no space\); export it again"):
        read_series(series)


def bright(shape: Sequence[int]) -> np.ndarray:
    """Noise with two bright blocks, as the cases of `world`."""
    voxels = np.random.default_rng(0).normal(100, 5, tuple(shape))
    voxels[2:5, 2:6, 2:7] += 40
    voxels[5:8, 5:9, 6:11] += 80
    return voxels


def test_prediction_of_a_series_gives_the_same_labels_in_every_format(world: Path) -> None:
    """NIfTI by SimpleITK against DICOM frames by hand: each place of a segment has its label, and there are no more."""
    import SimpleITK as sitk

    write_series(Path("scan"), bright((9, 10, 12)), lps_affine(), order=range(11, -1, -1))
    written = predict_files(RUN, "scan", "out", save=("labels", "dicom_seg"))
    assert [path.name for path in written] == ["scan.nii.gz", "scan_seg.dcm"]
    labels, points = sitk.ReadImage("out/scan.nii.gz"), segmented_points(Path("out/scan_seg.dcm"))
    values = sitk.GetArrayViewFromImage(labels)
    assert len(points) >= 1
    for value in (1, 2):
        here = points.get(value, set())
        assert len(here) == np.count_nonzero(values == value)
        index = [labels.TransformPhysicalPointToIndex([part / 100 for part in point]) for point in here]
        assert all(labels[place] == value for place in index)


def test_a_folder_of_series_and_an_export_that_fails_cost_nothing_else(world: Path) -> None:
    voxels = bright((9, 10, 12))
    write_series(Path("scans/good"), voxels, lps_affine())
    write_series(Path("scans/anonymous"), voxels, lps_affine(), StudyInstanceUID=None)
    write_series(Path("scans/gap"), voxels, lps_affine(), order=[0, 1, 3, 4])
    with pytest.raises(RunFault) as caught:
        predict_files(RUN, "scans", "out", save=("dicom_seg", "labels"))
    gap, anonymous = caught.value.faults
    assert gap.startswith("scans/gap: its slices lie 5 to 10 mm apart")
    assert anonymous.startswith("out/anonymous_seg.dcm: dicom_seg could not be written (")
    assert "StudyInstanceUID" in anonymous
    names = {path.name for path in Path("out").iterdir()}
    assert {"good.nii.gz", "good_seg.dcm", "anonymous.nii.gz"} <= names
    assert not {"anonymous_seg.dcm", "gap.nii.gz"} & names
    assert not [name for name in names if name.endswith(".part")]
    with pytest.raises(InputError, match=r"--save dicom_seg: data/imagesTr holds NIfTI files, which name no patient"):
        predict_files(RUN, "data/imagesTr", "other", save=("dicom_seg",))
    assert not Path("other").exists()
