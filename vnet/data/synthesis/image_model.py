"""Images drawn from a label map: a Gaussian per tissue, blur, bias field, slice thickness, noise; and the label table.

The generative model of Billot et al., SynthSeg (Medical Image Analysis 2023, arXiv 2107.09559), without its spatial
deformation. Intensities are in units of 255, as there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from vnet.core.errors import InputError
from vnet.data.description import is_plain, read_json, whole_number


@dataclass(frozen=True)
class LabelValue:
    """One value of the label maps.

    Attributes:
        structure: number of the structure to segment; 0 is background.
        name: of the structure.
        tissue: values of one tissue share an intensity distribution.
    """

    structure: int
    name: str
    tissue: str


Table = Mapping[int, LabelValue]

# FreeSurfer's numbering: structure -> (name, tissue). Structures of the left side; those of the right side follow.
MIDDLE = {
    14: ("3rd ventricle", "ventricle"),
    15: ("4th ventricle", "ventricle"),
    16: ("brain-stem", "brain-stem"),
    24: ("csf", "csf"),
}
SIDES = {
    (2, 41): ("cerebral white matter", "white matter"),
    (3, 42): ("cerebral cortex", "cortex"),
    (4, 43): ("lateral ventricle", "ventricle"),
    (5, 44): ("inferior lateral ventricle", "ventricle"),
    (7, 46): ("cerebellum white matter", "white matter"),
    (8, 47): ("cerebellum cortex", "cerebellum cortex"),
    (10, 49): ("thalamus", "thalamus"),
    (11, 50): ("caudate", "caudate"),
    (12, 51): ("putamen", "putamen"),
    (13, 52): ("pallidum", "pallidum"),
    (17, 53): ("hippocampus", "hippocampus"),
    (18, 54): ("amygdala", "amygdala"),
    (26, 58): ("accumbens area", "accumbens"),
    (28, 60): ("ventral DC", "ventral DC"),
}
# Values that are part of another structure, or of none: lesions, choroid plexus, vessels.
PARTS = {
    (25, 57): ((2, 41), "lesion"),
    (136, 163): ((4, 43), "choroid plexus"),
    (137, 164): ((5, 44), "choroid plexus"),
    (30, 62): ((0, 0), "vessel"),
}
OUTSIDE = (72, 85, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)  # optic chiasm, skull, skin, eyes, ...


def freesurfer_table() -> dict[int, LabelValue]:
    """The values of the label maps published with SynthSeg, in FreeSurfer's numbering; both sides share tissues."""
    table = {0: LabelValue(0, "background", "air")}
    table |= {value: LabelValue(value, name, tissue) for value, (name, tissue) in MIDDLE.items()}
    for values, (name, tissue) in SIDES.items():
        for value, side in zip(values, ("left", "right"), strict=True):
            table[value] = LabelValue(value, f"{side} {name}", tissue)
    for values, (structures, tissue) in PARTS.items():
        for value, structure in zip(values, structures, strict=True):
            table[value] = LabelValue(structure, table[structure].name, tissue)
    return table | {value: LabelValue(0, "background", f"outside {value}") for value in OUTSIDE}


def read_table(path: Path) -> dict[int, LabelValue]:
    """A table from JSON: a list of {"value": 3, "structure": 3, "name": "left cerebral cortex", "tissue": "cortex"}.

    Raises:
        InputError: entries that cannot be read, structures of several names, or columns that are shifted against each
            other, so that values carry the names of their neighbours.
    """
    entries = read_json(path, list, "a list of label values")
    table: dict[int, LabelValue] = {}
    faults = []
    for number, entry in enumerate(entries):
        found = read_entry(entry)
        if found is None or found[0] in table:
            faults.append(
                f'{path}: entry {number} must be {{"value", "structure", "name", "tissue"}} with a value of its own, '
                f"got {entry!r:.120}; correct it"
            )
        else:
            table[found[0]] = found[1]
    if faults:
        raise InputError(faults)
    if fault := table_fault(table):
        raise InputError(f"{path}: {fault}")
    return table


def read_entry(entry: Any) -> tuple[int, LabelValue] | None:
    """(value, meaning) of an entry of a table, None where it is not one."""
    if not isinstance(entry, Mapping):
        return None
    value, structure = (whole_number(entry.get(key)) for key in ("value", "structure"))
    name, tissue = entry.get("name"), entry.get("tissue")
    if value is None or structure is None or not is_plain(name) or not isinstance(tissue, str | int):
        return None
    return value, LabelValue(structure, str(name), str(tissue))


def table_fault(table: Table) -> str | None:
    """What a table contradicts itself in, None where it does not."""
    names: dict[int, str] = {}
    for meaning in table.values():
        if names.setdefault(meaning.structure, meaning.name) != meaning.name:
            return (
                f"structure {meaning.structure} has the names {names[meaning.structure]} and {meaning.name}; keep one"
            )
    # a structure has the number of one of its own values, so a value that is another structure's number is misplaced
    shifted = [value for value in table if value in names and table[value].structure != value]
    if shifted:
        value = shifted[0]
        return (
            f"{len(shifted)} values are numbers of structures that they do not belong to (value {value} is of "
            f"structure {table[value].structure}, but there is a structure {value}): the columns are shifted; correct "
            "them"
        )
    return None


def structure_names(table: Table) -> tuple[str, ...]:
    """Names of the structures in the order of their numbers, background first; the index is the new label value."""
    names = {meaning.structure: meaning.name for meaning in table.values() if meaning.structure}
    return ("background", *(names[structure] for structure in sorted(names)))


def unknown_values(table: Table, values: Iterable[int]) -> list[int]:
    """The values that the table does not hold."""
    return sorted(set(values) - table.keys())


# Mean intensities of a T1-weighted image; tissues outside of this table are drawn as for the contrast `random`.
T1_MEANS = {
    "air": 4.0,
    "csf": 35.0,
    "ventricle": 30.0,
    "choroid plexus": 60.0,
    "cortex": 105.0,
    "white matter": 165.0,
    "lesion": 110.0,
    "cerebellum cortex": 100.0,
    "thalamus": 140.0,
    "caudate": 115.0,
    "putamen": 120.0,
    "pallidum": 148.0,
    "hippocampus": 108.0,
    "amygdala": 106.0,
    "accumbens": 112.0,
    "ventral DC": 145.0,
    "brain-stem": 150.0,
    "vessel": 60.0,
}
CONTRASTS = ("t1", "random")
CENTRE = 110.0  # intensity that a smaller contrast draws all means to
MEAN_JITTER, STD_RANGE, RANDOM_RANGE = 4.0, (3.0, 7.0), (10.0, 240.0)
BIAS_POINTS = 4  # of the coarse grid of the bias field, an axis
FWHM = 2 * np.sqrt(2 * np.log(2))


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """How images are drawn.

    Attributes:
        contrast: `t1`, mean intensities about those of a T1-weighted image; `random`, any mean for any tissue.
        contrast_scale: 1 leaves the differences between tissues, 0.3 leaves a third of them.
        bias: standard deviation of the logarithm of the bias field at its grid points.
        blur_mm: standard deviation of the Gaussian that blurs tissues into each other.
        resolution_mm: (z, y, x) of the acquisition; finer than the map's spacing leaves an axis as it is.
        noise: standard deviation of the noise, in intensities of 0 to 255.
    """

    contrast: str = "t1"
    contrast_scale: float = 1.0
    bias: float = 0.3
    blur_mm: float = 0.5
    resolution_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 3.0

    def __post_init__(self) -> None:
        faults = [
            *([] if self.contrast in CONTRASTS else [f"contrast must be one of {CONTRASTS}, got {self.contrast!r}"]),
            *([] if len(self.resolution_mm) == 3 else [f"resolution_mm must hold 3, got {self.resolution_mm}"]),
            *(
                f"{name} must be 0 or more, got {value}"
                for name in ("contrast_scale", "bias", "blur_mm", "noise")
                if not 0 <= (value := getattr(self, name)) < np.inf
            ),
            *(f"resolution_mm must be positive, got {size}" for size in self.resolution_mm if not 0 < size < np.inf),
        ]
        if faults:
            raise InputError(faults)

    def draw(
        self, labels: np.ndarray, table: Table, spacing_mm: Sequence[float], rng: np.random.Generator
    ) -> np.ndarray:
        """An image of a label map.

        Args:
            labels: (D, H, W), values of `table`.
            spacing_mm: (z, y, x).

        Returns:
            (D, H, W) int16.
        """
        means, stds = self.draw_tissues(sorted({meaning.tissue for meaning in table.values()}), rng)
        largest = max(table) + 1
        mean_of, std_of = np.zeros(largest), np.zeros(largest)
        for value, meaning in table.items():
            mean_of[value], std_of[value] = means[meaning.tissue], stds[meaning.tissue]
        image = mean_of[labels] + std_of[labels] * rng.standard_normal(labels.shape)
        image = ndimage.gaussian_filter(image, [self.blur_mm / size for size in spacing_mm], truncate=3.0)
        image *= bias_field(labels.shape, self.bias, rng)
        image = lower_resolution(image, spacing_mm, self.resolution_mm)
        image += self.noise * rng.standard_normal(labels.shape)
        return np.clip(np.rint(image), 0, 2**15 - 1).astype(np.int16)

    def draw_tissues(
        self, tissues: Sequence[str], rng: np.random.Generator
    ) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """(mean, standard deviation) of each tissue; always the same count of numbers is drawn."""
        means, stds = {}, {}
        for tissue in tissues:
            jitter, std, anything = rng.standard_normal(), rng.uniform(*STD_RANGE), rng.uniform(*RANDOM_RANGE)
            known = self.contrast == "t1" and tissue in T1_MEANS
            mean = T1_MEANS[tissue] + MEAN_JITTER * jitter if known else anything
            means[tissue] = CENTRE + self.contrast_scale * (mean - CENTRE)
            stds[tissue] = std
        return means, stds


def bias_field(shape: Sequence[int], std: float, rng: np.random.Generator) -> np.ndarray:
    """(D, H, W) positive factors: the exponential of a coarse grid of normal numbers, enlarged by cubic splines."""
    coarse = std * rng.standard_normal((BIAS_POINTS,) * 3)
    field: np.ndarray = ndimage.zoom(coarse, [n / BIAS_POINTS for n in shape], order=3, mode="nearest")
    return np.exp(field)


def lower_resolution(image: np.ndarray, spacing_mm: Sequence[float], resolution_mm: Sequence[float]) -> np.ndarray:
    """The image as acquired with larger voxels and resampled linearly to its own grid.

    Along each coarser axis a Gaussian whose full width at half maximum is the new voxel's length blurs it first.
    """
    for axis, (fine, coarse) in enumerate(zip(spacing_mm, resolution_mm, strict=True)):
        if coarse <= fine * (1 + 1e-6):
            continue
        n = image.shape[axis]
        m = max(1, round(n * fine / coarse))
        image = ndimage.gaussian_filter1d(image, coarse / FWHM / fine, axis, mode="nearest", truncate=3.0)
        for here, there in ((n, m), (m, n)):
            factors = [there / here if other == axis else 1.0 for other in range(3)]
            image = ndimage.zoom(image, factors, order=1, mode="nearest", grid_mode=True)
    return image
