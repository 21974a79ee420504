"""What phantoms are made: the parameters of organs and of sheets, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass

from vnet.core.errors import InputError

MODALITIES = ("MRI", "CT")
ORIENTATIONS = ("RAS", "LPS", "RAS", "SRA", "LAS", "PIR")


@dataclass(frozen=True, kw_only=True)
class PhantomKind:
    """What phantoms are made.

    Attributes:
        size: voxels (z, y, x), about; each volume differs by up to 12 %.
        spacing_mm: (z, y, x), about; a third of the volumes have slices a fifth thicker, and fewer.
        organs: 1 or more.
        vessels: whether vessels are drawn and labelled.
        modality: MRI or CT.
        channels: images per case.
        orientations: of the files' axes, taken in turn; every fourth file also lies oblique.
        noise: standard deviation in units of the contrast between tissue and organ.
        fineness: finer voxels per voxel and axis in rendering.
        vary: False makes every volume of exactly this size and spacing.
        ignore: share of the organ surfaces' voxels marked with an ignore label, 0 for none.
    """

    size: tuple[int, int, int] = (40, 42, 40)
    spacing_mm: tuple[float, float, float] = (1.25, 1.0, 1.0)
    organs: int = 2
    vessels: bool = True
    modality: str = "MRI"
    channels: int = 1
    orientations: tuple[str, ...] = ORIENTATIONS
    noise: float = 0.22
    fineness: int = 2
    vary: bool = True
    ignore: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            *([] if min(self.size) >= 8 else [f"size must be 8 voxels or more an axis, got {self.size}"]),
            *([] if min(self.spacing_mm) > 0 else [f"spacing_mm must be positive, got {self.spacing_mm}"]),
            *([] if 1 <= self.organs <= 200 else [f"organs must lie in 1 to 200, got {self.organs}"]),
            *([] if self.modality in MODALITIES else [f"modality must be one of {MODALITIES}, got {self.modality!r}"]),
            *([] if self.channels >= 1 else [f"channels must be 1 or more, got {self.channels}"]),
            *([] if 1 <= self.fineness <= 4 else [f"fineness must lie in 1 to 4, got {self.fineness}"]),
            *([] if self.noise >= 0 else [f"noise must be 0 or more, got {self.noise}"]),
            *([] if 0 <= self.ignore <= 1 else [f"ignore must lie in [0, 1], got {self.ignore}"]),
            *(
                f"orientations must name three axes as RAS, got {one!r}"
                for one in self.orientations
                if not is_axes(one)
            ),
            *([] if self.orientations else ["orientations must name at least one, got none"]),
        ]
        if faults:
            raise InputError(faults)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the label values."""
        known = ("liver", "kidney")
        names = known[: self.organs] if self.organs <= 2 else tuple(f"organ {i + 1:02d}" for i in range(self.organs))
        return ("background", *names, *(["vessel"] if self.vessels else []))


def is_axes(text: str) -> bool:
    return len(text) == 3 and sum(any(c in text for c in pair) for pair in ("LR", "AP", "SI")) == 3


@dataclass(frozen=True, kw_only=True)
class SheetKind:
    """What sheets are made; every pair of a thickness and a noise comes in turn.

    Attributes:
        size: voxels (z, y, x), of 1 mm.
        thickness_vox: of the sheets, in voxels.
        noise: standard deviations in units of the contrast between sheet and surroundings.
    """

    size: tuple[int, int, int] = (32, 32, 32)
    thickness_vox: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    noise: tuple[float, ...] = (0.1, 0.3, 0.6)
    # what every data set of phantoms has
    orientations: tuple[str, ...] = ("RAS",)
    structures: tuple[str, ...] = ("background", "sheet")
    modality: str = "CT"  # no bias field
    channels: int = 1
    ignore: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            *([] if min(self.size) >= 16 else [f"size must be 16 voxels or more an axis, got {self.size}"]),
            *(f"thickness_vox must be positive, got {t}" for t in self.thickness_vox if not t > 0),
            *(f"noise must be 0 or more, got {s}" for s in self.noise if not s >= 0),
            *([] if self.thickness_vox and self.noise else ["thickness_vox and noise must hold a number each"]),
        ]
        if faults:
            raise InputError(faults)

    def properties(self, number: int) -> dict[str, float]:
        """Thickness and noise of volume `number`."""
        thickness = self.thickness_vox[number % len(self.thickness_vox)]
        return {"thickness_vox": thickness, "noise": self.noise[number // len(self.thickness_vox) % len(self.noise)]}
