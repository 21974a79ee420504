"""Images with instance maps: reading, checks, boxes and masks, crops, and the split by likeness."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from vnet.core.errors import InputError

LEAST_PIXELS = 10  # of an instance in a crop: what is left of a nucleus at its edge has no shape to learn
LEVELS = 64  # of the histograms that the split compares; nearly all pixels of these images lie below


@dataclass(frozen=True)
class Images:
    """Grey images and the instances in them.

    Attributes:
        names: one per image.
        images: (N, H, W) uint8.
        labels: (N, H, W) int32, 0 background, every other value an instance.
    """

    names: tuple[str, ...]
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]

    def content_hash(self) -> str:
        """12 hexadecimal digits of names, images and labels."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()[:12]

    def index(self, name: str) -> int:
        """Row of an image."""
        return self.names.index(name)


def read_images(path: str | Path) -> Images:
    """The images of a file, every one with at least one instance.

    Raises:
        InputError: a line for each fault: not such a file, masks of another size, an image without instances.
    """
    if not str(path):
        raise InputError("data: no file named; add --data FILE.npz")
    names, images, labels = read_arrays(Path(path), ("names", "images", "labels"))
    if images.ndim != 3 or images.dtype != np.uint8:
        raise InputError(f"{path}: images must be uint8 (N, H, W), got {images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: labels must be whole numbers, one per instance, got {labels.dtype}")
    if labels.shape != images.shape or len(names) != len(images):
        raise InputError(
            f"{path}: names and labels must fit images of {images.shape}, got {len(names)} names and labels of "
            f"{labels.shape}; masks have the size of their image"
        )
    found = Images(tuple(map(str, names)), images, labels.astype(np.int32))
    doubled = {name for name in found.names if found.names.count(name) > 1}
    faults = [f"{path}: image {name} is there more than once" for name in sorted(doubled)]
    for name, label in zip(found.names, found.labels, strict=True):
        if not label.any():
            faults.append(f"{path}: image {name} has no instances; label some, or leave it out")
        if label.min() < 0:
            faults.append(f"{path}: image {name} has labels below 0; instances are counted from 1")
    if faults:
        raise InputError(faults)
    return found


def read_arrays(path: Path, keys: tuple[str, ...]) -> list[NDArray]:
    """Arrays of an .npz file by their names.

    Raises:
        InputError: the file cannot be read, or an array is missing.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            if missing:
                raise InputError(f"{path}: holds no {', '.join(missing)}; it needs {', '.join(keys)}")
            return [file[key] for key in keys]
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an .npz file of arrays"
        raise InputError(f"{path}: cannot be read ({reason}); name an .npz file of {', '.join(keys)}") from None


def instances(label: NDArray[np.int32], least: int = 1) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Masks and boxes of an instance map.

    Args:
        label: (H, W).
        least: pixels of an instance; smaller ones are left out.

    Returns:
        Masks (n, H, W) and boxes (n, 4), x1 y1 x2 y2 in pixels, edge to edge: a pixel at (0, 0) has the box 0 0 1 1.
    """
    values, counts = np.unique(label[label > 0], return_counts=True)
    masks = label[None] == values[counts >= least][:, None, None]
    boxes = np.zeros((len(masks), 4), np.float32)
    for row, mask in enumerate(masks):
        y, x = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes[row] = x[0], y[0], x[-1] + 1, y[-1] + 1
    return masks, boxes


def normalised(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W) with the 99.8th percentile at 1: exposure differs from plate to plate."""
    return (image / max(float(np.percentile(image, 99.8)), 1.0)).astype(np.float32)


def random_crop(
    image: NDArray[np.float32], label: NDArray[np.int32], side: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """A square around a random instance, turned, mirrored and brightened at random."""
    values = np.unique(label[label > 0])
    centre = np.argwhere(label == rng.choice(values)).mean(0)
    corner = []
    for axis in (0, 1):
        free = max(label.shape[axis] - side, 0)
        corner.append(int(np.clip(centre[axis] - side * rng.uniform(0.2, 0.8), 0, free)))
    place = (slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side))
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    gain, power = rng.uniform(0.8, 1.25), rng.uniform(0.8, 1.25)
    shade, own = (np.rot90(part[place], turns) for part in (image, label))
    if mirrored:
        shade, own = shade[:, ::-1], own[:, ::-1]
    return (gain * shade**power).astype(np.float32), np.ascontiguousarray(own)


def split_by_likeness(images: Images, *, clusters: int, test: int, validation: int) -> list[dict[str, object]]:
    """Every image's group and part: groups of alike images are never divided.

    Images of one plate look alike, so a random split would test on what was trained on. Images are grouped by Ward's
    linkage of their cumulative intensity histograms. The groups, largest first, then go to the part that lacks most of
    its share.

    Returns:
        A row per image: `image`, `group`, `part` (train, validation or test), `nuclei`.

    Raises:
        InputError: fewer images than groups, or a part that stays empty.
    """
    count = len(images.names)
    if count < max(clusters, test + validation + 1):
        raise InputError(f"data: {count} images cannot be split into {clusters} groups and three parts; lower clusters")
    pixels = images.images[0].size
    histograms = [np.bincount(image.ravel(), minlength=256)[:LEVELS].cumsum() / pixels for image in images.images]
    group = fcluster(linkage(np.array(histograms), "ward"), clusters, "maxclust")
    wanted = {"train": count - test - validation, "test": test, "validation": validation}
    given = dict.fromkeys(wanted, 0)
    part = {}
    sizes = np.bincount(group)
    for one in sorted(set(group.tolist()), key=lambda g: (-sizes[g], g)):
        part[one] = max(wanted, key=lambda name: (wanted[name] - given[name]) / wanted[name])
        given[part[one]] += int(sizes[one])
    if not all(given.values()):
        raise InputError(f"data: groups of alike images fill only {given}; raise clusters")
    return [
        {"image": name, "group": int(group[i]), "part": part[int(group[i])], "nuclei": len(np.unique(label)) - 1}
        for i, (name, label) in enumerate(zip(images.names, images.labels, strict=True))
    ]
