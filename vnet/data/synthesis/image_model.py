"""Images drawn from a label map: a Gaussian per tissue, blur, bias field, slice thickness, noise.

The generative model of Billot et al., SynthSeg (Medical Image Analysis 2023, arXiv 2107.09559), without its spatial
deformation. Intensities are in units of 255, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vnet.core.errors import InputError
from vnet.data.synthesis.label_table import Table

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
