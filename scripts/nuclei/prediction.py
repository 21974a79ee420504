"""Instance maps of new images with a trained run, from its own detections or from given boxes."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection import MaskRCNN

from scripts.nuclei.config import Config
from scripts.nuclei.detector import build_detector, detect, masks_in_boxes
from scripts.nuclei.images import normalised, read_arrays
from scripts.nuclei.training import load_checkpoint
from vnet.core.errors import InputError
from vnet.core.files import write_bytes, write_table


def predict_file(run: Path, file: Path, output: Path, *, boxes: Path | None = None, score: float = 0.5) -> int:
    """Write NAME.png (uint16, instance k has the value k) of each image of a file, and instances.csv; the count.

    Args:
        run: RUN_ROOT/NAME/ARM/seedS.
        file: .npz of `names` and `images`; labels are not read.
        output: a folder.
        boxes: CSV of image, x1, y1, x2, y2 in pixels, at least one a named image; None detects boxes.
        score: lowest score of a detection.

    Raises:
        InputError: not a run, not such a file, an image without a box, a box outside of its image.
    """
    detector = trained_detector(run)
    names, images = read_arrays(file, ("names", "images"))
    if images.ndim != 3 or images.dtype != np.uint8 or len(names) != len(images):
        raise InputError(f"{file}: needs uint8 images (N, H, W) and N names, got {images.dtype} {images.shape}")
    given = None if boxes is None else read_boxes(boxes, [str(name) for name in names], images.shape[1:])
    rows = []
    for name, image in zip(map(str, names), images, strict=True):
        shade = normalised(image)
        if given is None:
            found = detect(detector, shade)
            kept = found["scores"] >= score
            corners, masks, scores = found["boxes"][kept], found["masks"][kept], found["scores"][kept]
        else:
            corners = given[name]
            masks, scores = masks_in_boxes(detector, shade, corners), np.ones(len(corners))
        write_map(output / f"{name}.png", masks)
        for number, (box, own, mask) in enumerate(zip(corners, scores, masks, strict=True), start=1):
            row = {"image": name, "instance": number, "score": float(own), "pixels": int(mask.sum())}
            rows.append(row | {key: float(edge) for key, edge in zip(("x1", "y1", "x2", "y2"), box, strict=True)})
    columns = ("image", "instance", "score", "pixels", "x1", "y1", "x2", "y2")
    write_table(output / "instances.csv", rows, columns)
    return len(images)


def trained_detector(run: Path) -> MaskRCNN:
    """The detector of a run with its last weights, in evaluation mode."""
    checkpoint, config = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    if not (checkpoint.is_file() and config.is_file()):
        raise InputError(
            f"{run}: not a trained run (no config.yaml and checkpoints/last.ckpt); name RUN_ROOT/NAME/ARM/seedS"
        )
    keys = yaml.safe_load(config.read_text(encoding="utf-8"))
    known = {item.name for item in fields(Config)}
    torch.manual_seed(0)
    detector = build_detector(Config(**{key: value for key, value in keys.items() if key in known}))
    averaged = AveragedModel(detector)
    load_checkpoint(checkpoint, averaged)
    trained: MaskRCNN = averaged.module
    return trained.eval()


def read_boxes(path: Path, names: list[str], size: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Boxes (n, 4), x1 y1 x2 y2 in pixels, of each image.

    Raises:
        InputError: a line for each fault.
    """
    columns = ("x1", "y1", "x2", "y2")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a CSV of image,{','.join(columns)}") from None
    if not lines or not {"image", *columns} <= set(lines[0]):
        raise InputError(f"{path}: needs a head image,{','.join(columns)} and a line per box")
    boxes: dict[str, list[list[float]]] = {name: [] for name in names}
    faults = []
    for number, line in enumerate(lines, start=2):
        try:
            box = [float(line[key]) for key in columns]
        except (TypeError, ValueError):
            faults.append(f"{path}: line {number}: {','.join(columns)} must be numbers")
            continue
        if line["image"] not in boxes:
            faults.append(f"{path}: line {number}: no image {line['image']} in the input")
        elif not (box[0] < box[2] and box[1] < box[3]):
            faults.append(f"{path}: line {number}: x1 must be below x2 and y1 below y2, got {box}")
        elif not (box[0] >= 0 and box[1] >= 0 and box[2] <= size[1] and box[3] <= size[0]):
            faults.append(f"{path}: line {number}: box {box} lies outside of its image of {size[1]} x {size[0]} pixels")
        else:
            boxes[line["image"]].append(box)
    faults += [f"{path}: no box in image {name}; add one, or leave the image out" for name in names if not boxes[name]]
    if faults:
        raise InputError(faults)
    return {name: np.array(rows, np.float32) for name, rows in boxes.items()}


def write_map(path: Path, masks: NDArray[np.bool_]) -> None:
    """An instance map as a PNG of 16 bits; where masks overlap, the one with the better score stays."""
    import io

    from PIL import Image

    label = np.zeros(masks.shape[1:], np.uint16)
    for number in range(len(masks), 0, -1):
        label[masks[number - 1]] = number
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
