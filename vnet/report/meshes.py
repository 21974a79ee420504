"""Surfaces of structures as meshes, coloured by structure, or by how far another surface lies from them.

The surface of a voxel mask is the set of faces between a voxel inside and one outside. Marching cubes (Lewiner et
al., 2003, as scikit-image has it) at level .5 puts its vertices in the middle of exactly these faces, so that an
error of 0 means that the prediction has the same face.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vnet.data.colours import Colour, structure_colours
from vnet.evaluation.metrics import Labels
from vnet.evaluation.surfaces import Mask, Steps, nearest_tree, positions_mm

VERTICES = 6000  # of a mesh, all structures together, about
STRUCTURES = 8  # the largest ones
INK: Colour = (40, 40, 40)
LETTER_PX = 12  # height of a caption's letters, before they become triangles
# from too small over right to too large; told apart in every common kind of colour blindness
SMALL, RIGHT, LARGE = np.array([(0, 114, 178), (235, 235, 235), (213, 94, 0)], float)


@dataclass(frozen=True)
class Mesh:
    """A surface of V vertices and F triangles.

    Attributes:
        vertices_mm: (V, 3) float32, (z, y, x), from the centre of the image's first voxel.
        faces: (F, 3) int32.
        error_mm: (V,) float32, distance to the predicted surface: above 0 where the prediction reaches further out,
            below 0 where it falls short, infinite where nothing was predicted.
        labels: (V,) int64, the structure of each vertex.
    """

    vertices_mm: NDArray[np.float32]
    faces: NDArray[np.int32]
    error_mm: NDArray[np.float32]
    labels: NDArray[np.int64]


def error_mesh(
    truth: Labels,
    predictions: Sequence[Labels],
    spacing_mm: Steps,
    classes: int,
    vertices: int = VERTICES,
) -> list[Mesh]:
    """The true surfaces of all structures (the 8 largest) in one mesh per prediction: the same mesh, other errors.

    Args:
        truth: (D, H, W), whole numbers; what lies outside of 1 to K - 1 has no surface.
        predictions: label volumes of that shape.
        spacing_mm: (z, y, x), or the matrix of `vnet.evaluation.surfaces.Steps`.
        classes: K.
        vertices: about how many a mesh may have; a larger surface is taken from every second, third, ... voxel.

    Returns:
        A mesh per prediction, without vertices where `truth` holds no structure.

    Raises:
        ValueError: shapes that disagree.
    """
    for prediction in predictions:
        if prediction.shape != truth.shape:
            raise ValueError(f"truth and predictions must agree in shape, got {truth.shape} and {prediction.shape}")
    sizes = np.bincount(np.clip(truth.ravel(), 0, classes), minlength=classes + 1)[1:classes]
    largest = np.argsort(-sizes, kind="stable")[:STRUCTURES] + 1
    shown = sorted(int(label) for label in largest if sizes[label - 1])
    parts = [structure_mesh(label, truth, predictions, spacing_mm, max(vertices // len(shown), 300)) for label in shown]
    return [_join([meshes[i] for meshes in parts]) for i in range(len(predictions))]


def structure_mesh(
    label: int, truth: Labels, predictions: Sequence[Labels], spacing_mm: Steps, vertices: int
) -> list[Mesh]:
    """The surface of one structure with the errors of each prediction; see `error_mesh`."""
    from skimage.measure import marching_cubes

    mask, *predicted = (volume == label for volume in (truth, *predictions))
    box = _box(np.logical_or.reduce([mask, *predicted]))
    # one voxel of background around, so that the surface is closed at the image's border
    mask, *predicted = (np.pad(volume[box], 1) for volume in (mask, *predicted))
    places, _ = _faces_mm(mask, mask, spacing_mm)
    step = math.ceil(math.sqrt(len(places) / vertices))
    try:
        corners, faces, _, _ = marching_cubes(mask.astype(np.float32), 0.5, step_size=step)
    except (ValueError, RuntimeError):  # thinner than the step everywhere
        corners, faces = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)
    nearest = nearest_tree(places).query(positions_mm(corners, spacing_mm))[1] if len(corners) else np.zeros(0, int)
    first = np.array([s.start for s in box]) - 1
    vertices_mm = np.asarray(positions_mm(corners + first, spacing_mm), np.float32)
    errors = [_errors_mm(mask, volume, spacing_mm, nearest) for volume in predicted]
    labels = np.full(len(vertices_mm), label)
    return [Mesh(vertices_mm, np.asarray(faces, np.int32), error, labels) for error in errors]


def label_colours(labels: NDArray[np.int64], classes: int) -> NDArray[np.uint8]:
    """(V, 3): the colour of each vertex's structure."""
    palette = np.array([(0, 0, 0), *structure_colours(classes - 1)], np.uint8)
    return palette[labels]


def error_colours(error_mm: NDArray[np.floating[Any]], limit_mm: float) -> NDArray[np.uint8]:
    """(V, 3): blue at `-limit_mm` and below, light grey at 0, orange at `limit_mm` and above."""
    amount = np.clip(np.abs(error_mm) / limit_mm, 0, 1)[:, None]
    end = np.where((error_mm < 0)[:, None], SMALL, LARGE)
    return np.round(RIGHT + (end - RIGHT) * amount).astype(np.uint8)


def upright(vertices_mm: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """(z, y, x) to the axes of a 3D viewer (right, up, towards the eye), seen from the patient's front, about 0."""
    z, y, x = vertices_mm.T
    placed = np.stack([-x, z, y], axis=1)
    middle = (placed.min(0) + placed.max(0)) / 2 if len(placed) else 0
    return np.asarray(placed - middle, np.float32)


Words = Sequence[tuple[str, Colour]]


def rgb(colour: NDArray[np.floating[Any]]) -> Colour:
    """The three numbers of a colour as whole ones."""
    red, green, blue = (round(float(part)) for part in colour)
    return red, green, blue


def captioned(
    mesh: Mesh, colours: NDArray[np.uint8], lines: Sequence[Words]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Vertices (in the axes of the viewer, about 0), faces and colours of a mesh with `caption` below it."""
    vertices = upright(mesh.vertices_mm)
    below, faces, inks = caption(lines, vertices)
    both = np.concatenate([vertices, below])
    return (
        both - (both.min(0) + both.max(0)) / 2,
        np.concatenate([mesh.faces, faces + len(vertices)]),
        np.concatenate([colours, inks]),
    )


def caption(
    lines: Sequence[Words], vertices: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Lines of words as triangles below a surface, as wide as the surface: vertices, faces, colours.

    The Mesh tab writes nothing beside a surface, so the surface says itself what it is.

    Args:
        lines: of words with their colours.
        vertices: (V, 3) of the surface, right, up, towards the eye.
    """
    low, high = vertices.min(0), vertices.max(0)
    font = ImageFont.load_default(LETTER_PX)
    page = Image.new("RGB", (max(_width_px(words, font) for words in lines), round(1.5 * LETTER_PX) * len(lines)))
    draw = ImageDraw.Draw(page)
    draw.fontmode = "1"  # no half tones: ink is where a triangle is
    for number, words in enumerate(lines):
        left = (page.width - _width_px(words, font)) // 2
        for text, colour in words:
            draw.text((left, round(1.5 * LETTER_PX) * number), text, tuple(max(part, 1) for part in colour), font)
            left += _width_px([(text, colour)], font)
    boxes, colours = _boxes(np.asarray(page))
    scale = max(high[0] - low[0], 0.6 * (high[1] - low[1])) / page.width
    right = (boxes[:, [1, 3, 3, 1]] - page.width / 2) * scale + (low[0] + high[0]) / 2
    gap = 0.15 * (high[1] - low[1])  # what lies in front of the words is seen lower than it is
    up = low[1] - gap - scale * (boxes[:, [0, 0, 2, 2]])
    corners = np.stack([right, up, np.full_like(up, (low[2] + high[2]) / 2)], axis=-1).reshape(-1, 3)
    first = 4 * np.arange(len(boxes))[:, None, None]
    faces = (first + np.array([[0, 2, 1], [0, 3, 2]])).reshape(-1, 3)
    return corners.astype(np.float32), faces.astype(np.int32), np.repeat(colours, 4, axis=0)


def _width_px(words: Words, font: Any) -> int:
    return sum(round(font.getlength(f"{text}  ", mode="1")) for text, _ in words)


def _boxes(page: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """The page's ink as rectangles (N, 4) of top, left, bottom, right, and their colours: runs joined down the rows."""
    found: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int, tuple[int, ...]], int] = {}  # run and colour -> its first row
    ink: Mask = np.asarray(page.any(axis=-1))
    for row in range(len(page) + 1):
        runs = set()
        if row < len(page):
            edges = np.flatnonzero(np.diff(np.pad(ink[row], 1).astype(int)))
            runs = {(int(a), int(b), tuple(page[row, a].tolist())) for a, b in edges.reshape(-1, 2)}
        for run in [run for run in growing if run not in runs]:
            found.append((growing.pop(run), run[0], row, run[1]))
        for run in runs:
            growing.setdefault(run, row)
    boxes = np.array(sorted(found), float).reshape(-1, 4)
    return boxes, page[boxes[:, 0].astype(int), boxes[:, 1].astype(int)]


def _errors_mm(
    mask: Mask, predicted: Mask, spacing_mm: Steps, nearest: NDArray[np.integer[Any]]
) -> NDArray[np.float32]:
    """Signed distance from the true faces `nearest` to the predicted surface; a missed structure is -infinity."""
    places, side = _faces_mm(mask, predicted, spacing_mm)
    there, _ = _faces_mm(predicted, predicted, spacing_mm)
    if not len(there):
        return np.full(len(nearest), -np.inf, np.float32)
    return np.asarray(nearest_tree(there).query(places[nearest])[0] * side[nearest], np.float32)


def _faces_mm(mask: Mask, other: Mask, spacing_mm: Steps) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centres of the faces of `mask`, and whether both voxels at a face lie in `other` (1), neither (-1) or one (0)."""
    places, sides = [], []
    for axis in range(3):
        here, there = (np.moveaxis(volume, axis, 0) for volume in (mask, other))
        crossing = np.moveaxis(here[1:] != here[:-1], 0, axis)
        both = np.moveaxis(there[1:].astype(np.int64) + there[:-1] - 1, 0, axis)
        place = np.argwhere(crossing).astype(float)
        place[:, axis] += 0.5
        places.append(positions_mm(place, spacing_mm))
        sides.append(both[crossing])
    return np.concatenate(places), np.concatenate(sides)


def _box(mask: Mask) -> tuple[slice, ...]:
    filled = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(int(rows[0]), int(rows[-1]) + 1) for rows in filled)


def _join(meshes: Sequence[Mesh]) -> Mesh:
    none = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32), np.zeros(0, np.float32), np.zeros(0, int))
    meshes = [none, *meshes]
    starts = np.cumsum([0, *(len(mesh.vertices_mm) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.vertices_mm for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]).astype(np.int32),
        np.concatenate([mesh.error_mm for mesh in meshes]),
        np.concatenate([mesh.labels for mesh in meshes]),
    )
