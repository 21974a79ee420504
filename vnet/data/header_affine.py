"""The affine that a NIfTI header means: sform, qform or spacing alone, in mm, with remarks on what it leaves open."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError

from vnet.core.errors import InputError, printable
from vnet.data.affines import (
    affine_fault,
    axis_codes,
    axis_cosine,
    corner_distance_mm,
    is_turned,
    orthogonal_affine,
    relative_orientation,
)

NAMED = 5


@dataclass(frozen=True)
class Remark:
    """One remark on one file.

    Attributes:
        file: folder and name, as `imagesTr/a.nii.gz`.
        topic: a word for the table of `data check`.
        text: what holds for every file with this remark.
        detail: what is the file's own, may be empty.
        warning: whether training and prediction print it too, because the figures depend on it.
    """

    file: str
    topic: str
    text: str
    detail: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Finding:
    """Something unusual that is not wrong: a topic, what it is and where, and whether it is a warning."""

    topic: str
    what: str
    warning: bool = False


def short_path(path: Path) -> str:
    """Folder and name of a file."""
    return f"{path.parent.name}/{path.name}" if path.parent.name else path.name


def name_some(names: Sequence[str]) -> str:
    """`a, b and 3 more`."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def group_remarks(remarks: Iterable[Remark]) -> list[Finding]:
    """A finding for each remark that files share, naming the first of them; in the order of their first file."""
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for remark in remarks:
        named = f"{remark.file} ({remark.detail})" if remark.detail else remark.file
        groups.setdefault((remark.topic, remark.text, remark.warning), []).append(named)
    return [
        Finding(topic, f"{name_some(files)}: {text}", warning=warning)
        for (topic, text, warning), files in groups.items()
    ]


def print_findings(findings: Iterable[Finding], *, notes: bool = False) -> None:
    """Print warnings, and with `notes` the other findings too, on stdout, a line each."""
    for finding in findings:
        if finding.warning or notes:
            print(f"{'warning' if finding.warning else 'note'}: {printable(finding.what)}", flush=True)


NO_CODES = (
    "no orientation in the header (qform_code and sform_code are 0): the first axis is taken to run to the left, the "
    "second to the front, the third to the head"
)
NO_CODES_MIXED = (
    "no orientation in the header (qform_code and sform_code are 0) where other files have one: it may be mirrored "
    "against them; copy the orientation from the original"
)
TWO_FORMS = "sform and qform differ: the sform is used"
SHEARED = "the axes are not at right angles (gantry tilt?): distances and volumes follow the affine"
UNITS = "lengths are given in {unit} and read as mm"
NO_QFAC = "pixdim[0] is 0 and read as 1, as the standard says"

UNIT_MM = {1: ("metre", 1000.0), 3: ("micron", 0.001)}  # by the lowest three bits of xyzt_units; 2 is mm, 0 unknown
VOXELS_APART = 0.1  # between two affines of one volume, at a corner: more is worth a warning


def is_coded(remarks: Iterable[Remark]) -> bool:
    """Whether no file was remarked on for a header without orientation codes."""
    return all(remark.text != NO_CODES for remark in remarks)


def read_affine(path: Path, header: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[Remark, ...]]:
    """(affine in mm, remarks) of a header; the affine is the sform, else the qform, else what the spacing gives.

    A qform whose pixdim[0] is 0 gets 1 in `header` itself.

    Args:
        shape: of the volume; its first three axes are used.

    Raises:
        InputError: an affine that is not invertible, or a sform and a qform of which one is flipped against the other.
    """
    file = short_path(path)
    remarks = []
    coded = header["sform_code"] > 0, header["qform_code"] > 0
    if coded[1] and header["pixdim"][0] == 0:
        header["pixdim"][0] = 1
        remarks += [] if coded[0] else [Remark(file, "header", NO_QFAC)]
    try:
        affine: np.ndarray = header.get_best_affine().astype(np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"{path}: damaged affine ({error}); mend the header's qform") from None
    unit, factor = UNIT_MM.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    affine[:3] *= factor
    if fault := affine_fault(affine):
        raise InputError(f"{path}: the affine is {fault}; mend the header (spacing above 0, axes apart)")
    if unit != "mm":
        remarks.append(Remark(file, "units", UNITS.format(unit=unit), warning=True))
    if not any(coded):
        remarks.append(Remark(file, "orientation", NO_CODES, warning=True))
    if all(coded):
        remarks += compare_forms(path, header, affine, factor, shape[:3])
    if (apart := corner_distance_mm(affine, orthogonal_affine(affine, shape[:3]), shape[:3])) > limit_mm(affine):
        degrees = float(np.degrees(np.arcsin(axis_cosine(affine))))
        remarks.append(Remark(file, "shear", SHEARED, f"{degrees:.1f} degrees, {apart:.2g} mm at a corner", True))
    return affine, tuple(remarks)


def compare_forms(
    path: Path, header: Any, sform: np.ndarray, factor: float, shape: tuple[int, ...]
) -> tuple[Remark, ...]:
    """A remark where the qform gives other places than the sform.

    Raises:
        InputError: an axis of one runs against that of the other, or along another: one of the two is wrong.
    """
    file = short_path(path)
    try:
        qform = header.get_qform().astype(np.float64)
    except (HeaderDataError, ValueError):
        return (Remark(file, "orientation", TWO_FORMS, "the qform is damaged", True),)
    qform[:3] *= factor
    if fault := affine_fault(qform):
        return (Remark(file, "orientation", TWO_FORMS, f"the qform is {fault}", True),)
    if is_turned(relative_orientation(qform, sform)):
        raise InputError(
            f"{path}: sform ({axis_codes(sform)}) and qform ({axis_codes(qform)}) disagree by a flip; find out which "
            "is right and clear the other's code"
        )
    apart = corner_distance_mm(sform, qform, shape)
    if apart <= limit_mm(sform):
        return ()
    return (Remark(file, "orientation", TWO_FORMS, f"by {apart:.3g} mm", True),)


def limit_mm(affine: np.ndarray) -> float:
    """A tenth of the smallest voxel side."""
    return VOXELS_APART * float(voxel_sizes(affine).min())
