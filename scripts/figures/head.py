"""Pictures of how the head works, from a trained run: image, coarse labels, uncertain voxels, refined labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from vnet.core.errors import InputError
from vnet.data.prepared import prepare_data
from vnet.data.volumes import read_image, read_label
from vnet.inference.predictor import Predictor
from vnet.report.case_pictures import png
from vnet.report.pictures import contour_picture
from vnet.report.slices import cut_slices, largest_slices

INK, PAPER = "#e8e8e8", "#101014"
STRUCTURES = ListedColormap(["#00000000", "#e69f00", "#56b4e9", "#f0e442", "#cc79a7"])


def draw(run: Path, case: str | None, output: Path) -> list[Path]:
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
    outlines = contour_picture(cut_slices(volume.array[0], versions, volume.spacing_mm), height_px=400)
    steps = step_figure(
        volume.array[0], truth, prediction.coarse.numpy(), prediction.extent, versions, prediction.index
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
) -> Figure:
    """Five panels of the axial slice with most foreground, (z, y, x) arrays.

    Args:
        coarse: (K, d, h, w) logits of the padded volume, of which the volume itself fills `extent`.
        index: flat indices of the refined voxels.
    """
    cut = largest_slices(truth > 0)[0]
    low, high = np.percentile(image, [1, 99])
    figure = Figure(figsize=(13, 3.4), dpi=130, facecolor=PAPER, layout="constrained")
    panels = figure.subplots(1, 5)
    asked = np.zeros(truth.size, bool)
    asked[index] = True
    blocks = coarse.argmax(0)
    seen = [max(round(n * share), 1) for n, share in zip(blocks.shape, extent, strict=True)]
    coarse_cut = blocks[min(int((cut + 0.5) / truth.shape[0] * seen[0]), seen[0] - 1), : seen[1], : seen[2]]
    box = (0, truth.shape[2], 0, truth.shape[1])
    layers = [
        ("1  the image", None),
        ("2  the network's coarse labels", coarse_cut),
        ("3  interpolated, and the voxels in doubt", versions["unrefined"][cut]),
        ("4  the head's answer there", versions["refined"][cut]),
        ("truth", truth[cut]),
    ]
    for panel, (title, labels) in zip(panels, layers, strict=True):
        panel.imshow(image[cut], cmap="gray", vmin=low, vmax=high, origin="lower", extent=box)
        if labels is not None:
            panel.imshow(
                labels, cmap=STRUCTURES, vmin=0, vmax=4, alpha=0.62, origin="lower", extent=box, interpolation="nearest"
            )
        panel.set_title(title, color=INK, fontsize=10)
        panel.set_axis_off()
    rows, columns = np.nonzero(asked.reshape(truth.shape)[cut])
    panels[2].scatter(columns + 0.5, rows + 0.5, s=4, c="white", linewidths=0)
    return figure
