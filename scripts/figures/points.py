"""Pictures of the points that `getpoint`, `uncertain_voxels` and a trained head choose; `getpoint`'s speed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vnet.core.errors import InputError
from vnet.data.colours import structure_colours
from vnet.data.planes import SIDES, contour_picture, cut_slices, largest_slices
from vnet.data.prepared import prepare_data
from vnet.data.volumes import read_image, read_label
from vnet.inference.predictor import Predictor
from vnet.report.case_pictures import png

REPOSITORY = Path(__file__).resolve().parents[2]
DARK, LIGHT, ACCENT = "#1b3a57", "#d7e3ee", "#d1495b"


def draw(output: Path) -> list[Path]:
    """Write points.png, surface.png and speed.png to the folder `output`."""
    paths = []
    for name, figure in (("points", points()), ("surface", surface()), ("speed", speed())):
        paths.append(output / f"{name}.png")
        figure.savefig(paths[-1], dpi=100, pil_kwargs={"optimize": True})
    return paths


def new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


def points() -> Any:
    """Draw the points of `getpoint` (k=2, beta=0.95, radius 1) over one shape at three resolutions."""
    from pointrend import getpoint
    from scripts.benchmarks.getpoint import blob_mask

    figure = new_figure(9, 3.3)
    for place, side in enumerate((32, 64, 128), start=1):
        mask = blob_mask(side, side)
        rows, columns = zip(*getpoint(mask, k=2, beta=0.95, nearest_neighbor=1, rng=0), strict=True)
        axes = figure.add_subplot(1, 3, place)
        # element i fills [i, i + 1)
        axes.imshow(mask, cmap="Purples", vmax=2, extent=(0, side, side, 0))
        axes.scatter(columns, rows, s=1.5, c="black", linewidths=0)
        axes.set(title=f"{side} x {side}: {len(rows)} points", xticks=[], yticks=[])
    return figure


def organ_logits(coarse: int) -> Any:
    """(2, n, n, n) logits of a lobed organ on a coarse grid, less certain where its wall is thin."""
    import torch

    z, y, x = torch.meshgrid(*[(torch.arange(coarse) + 0.5) / coarse * 2 - 1] * 3, indexing="ij")
    polar, azimuth = torch.atan2((x**2 + y**2).sqrt(), z), torch.atan2(y, x)
    radius = 0.62 + 0.1 * torch.sin(3 * azimuth) * torch.sin(polar) ** 2 + 0.08 * torch.cos(4 * polar)
    lead = (radius - (x**2 + y**2 + z**2).sqrt()) * (12 + 8 * torch.sin(2 * azimuth))
    return torch.stack([-lead, lead]) / 2


def surface() -> Any:
    """Draw the most uncertain 30 000 voxels of a 96^3 grid, from logits on a 24^3 grid."""
    import torch

    from pointrend import render_labels
    from pointrend.uncertain import uncertain_voxels

    fine = (96, 96, 96)
    logits = organ_logits(24)
    index, uncertainty = uncertain_voxels(logits, fine, num_points=30_000)
    z, y, x = torch.unravel_index(index, fine)
    labels = render_labels(logits[None], fine)[0]
    figure = new_figure(9, 4)
    space = figure.add_subplot(1, 2, 1, projection="3d")
    drawn = space.scatter(x, y, z, c=uncertainty, s=1, cmap="magma", linewidths=0)
    space.set(title="the 3 % most uncertain voxels", xlabel="x", ylabel="y", zlabel="z")
    space.view_init(elev=22, azim=-50)
    figure.colorbar(drawn, ax=space, label="second best minus best logit", shrink=0.7)
    plane = figure.add_subplot(1, 2, 2)
    middle = z == fine[0] // 2
    plane.imshow(labels[fine[0] // 2], cmap="Purples", vmax=2, origin="lower")
    plane.scatter(x[middle], y[middle], s=5, c=uncertainty[middle], cmap="magma", linewidths=0)
    plane.set(title="the plane in the middle", xlabel="x", ylabel="y")
    return figure


def speed() -> Any:
    """Draw seconds against points, both axes logarithmic."""
    source = REPOSITORY / "results" / "benchmarks" / "getpoint.csv"
    if not source.is_file():
        raise InputError(f"{source.relative_to(REPOSITORY)}: not there; run `python scripts/benchmark.py getpoint`")
    with source.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("improved_s")]
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    colours = {"original": LIGHT, "improved": "#7a9cc0", "filters": DARK, "getpoint": ACCENT}
    count = [int(row["points"]) for row in rows]
    for name, colour in colours.items():
        label = {"original": "2020, window by window", "improved": "2020, improved", "filters": "numpy and scipy"}
        axes.plot(count, [float(row[f"{name}_s"]) for row in rows], "o-", color=colour, label=label.get(name, name))
    axes.set(xscale="log", yscale="log", xlabel="points", ylabel="seconds", title="Drawing points at a boundary")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


INK, PAPER = "#e8e8e8", "#101014"


def draw_head(run: Path, case: str | None, output: Path) -> list[Path]:
    """Write phantom.png (outlines in three planes) and head.png (the steps, in one axial slice).

    Args:
        run: a run with a head.
        case: of its validation fold; None takes the first.
        output: folder, which exists.

    Raises:
        InputError: not a run, or no such validation case.
    """
    predictor = Predictor(run)
    prepared = prepare_data(predictor.config)
    name = case or prepared.fold.val[0]
    if name not in prepared.fold.val:
        raise InputError(f"--case {name}: not a validation case of {run}; one of {', '.join(prepared.fold.val)}")
    shown = prepared.cases((name,))[0]
    assert shown.label is not None  # folds hold labelled cases only
    volume, truth = read_image(shown.images), read_label(shown.label).array
    prediction = predictor.predict(volume)
    versions = {"truth": truth, "unrefined": prediction.unrefined, "refined": prediction.labels}
    slices = cut_slices(volume.array[0], versions, volume.spacing_mm, predictor.structures)
    outlines = contour_picture(slices, size_px=320)
    steps = step_figure(
        volume.array[0],
        truth,
        prediction.coarse.numpy(),
        prediction.extent,
        versions,
        prediction.index,
        predictor.structures,
    )
    paths = [output / "phantom.png", output / "head.png"]
    paths[0].write_bytes(png(outlines))
    FigureCanvasAgg(steps)
    steps.savefig(paths[1])
    return paths


def step_figure(
    image: np.ndarray,
    truth: np.ndarray,
    coarse: np.ndarray,
    extent: tuple[float, ...],
    versions: dict[str, np.ndarray],
    index: np.ndarray,
    structures: Sequence[str],
) -> Figure:
    """Five panels and a legend of the axial slice with most foreground, (z, y, x) arrays.

    Args:
        coarse: (K, d, h, w) logits of the padded volume, of which the volume itself fills `extent`.
        index: flat indices of the refined voxels.
        structures: names, the first is the background.
    """
    cut = largest_slices(truth > 0)[0]
    low, high = np.percentile(image, [1, 99])
    figure = Figure(figsize=(8, 6), dpi=130, facecolor=PAPER, layout="constrained")  # legible on a phone
    *panels, names = figure.subplots(2, 3).flat
    asked = np.zeros(truth.size, bool)
    asked[index] = True
    blocks = coarse.argmax(0)
    seen = [max(round(n * share), 1) for n, share in zip(blocks.shape, extent, strict=True)]
    coarse_cut = blocks[min(int((cut + 0.5) / truth.shape[0] * seen[0]), seen[0] - 1), : seen[1], : seen[2]]
    box = (0, truth.shape[2], 0, truth.shape[1])
    colours = [(r / 255, g / 255, b / 255) for r, g, b in structure_colours(len(coarse) - 1)]
    shades = ListedColormap([(0, 0, 0, 0), *colours])
    layers = [
        ("1  the image", None),
        ("2  the network's coarse labels", coarse_cut),
        ("3  interpolated; voxels in doubt", versions["unrefined"][cut]),
        ("4  the head's answer there", versions["refined"][cut]),
        ("truth", truth[cut]),
    ]
    for panel, (title, labels) in zip(panels, layers, strict=True):
        panel.imshow(image[cut], cmap="gray", vmin=low, vmax=high, origin="lower", extent=box)
        if labels is not None:
            look = {"cmap": shades, "vmin": 0, "vmax": len(coarse) - 1, "alpha": 0.62, "interpolation": "nearest"}
            panel.imshow(labels, origin="lower", extent=box, **look)
        panel.set_title(title, color=INK, fontsize=12)
        panel.set_axis_off()
        panel.invert_xaxis()  # radiological: the patient's right on the left
    for side, place, align in ((SIDES[0][0], 0.02, "left"), (SIDES[0][1], 0.98, "right")):
        panels[0].text(place, 0.5, side, color=INK, transform=panels[0].transAxes, ha=align, va="center")
    patches = [Patch(color=colour, label=name) for name, colour in zip(structures[1:], colours, strict=True)]
    names.legend(handles=patches, loc="center", labelcolor=INK, facecolor=PAPER, edgecolor=PAPER, fontsize=13)
    names.set_axis_off()
    rows, columns = np.nonzero(asked.reshape(truth.shape)[cut])
    panels[2].scatter(columns + 0.5, rows + 0.5, s=4, c="white", linewidths=0)
    return figure
