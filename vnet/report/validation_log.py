"""What TensorBoard gets of a validation: curves of Dice and refinement, pictures of cases, the surface of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from vnet.data.colours import structure_colours
from vnet.data.planes import PANEL_PX, Picture
from vnet.evaluation.metrics import Row
from vnet.evaluation.refinement import ALL, COUNTS, DISTANCE_EDGES_MM, Density, point_density
from vnet.evaluation.scores import CaseScores, PredictedCase, mean_dice
from vnet.report.case_pictures import CasePicture, pick_extremes
from vnet.report.meshes import INK, LARGE, SMALL, captioned, error_colours, error_mesh, label_colours, rgb
from vnet.report.pictures import points_picture, uncertainty_picture
from vnet.report.tensorboard import MEAN, NEAR, SURFACE_LIMIT_VOX, Board, refined_dice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSITY_EDGE = 1  # the density of points is that within DISTANCE_EDGES_MM[1]: 2 mm


def log_dice(board: Board, step: int, means: Mapping[bool, Mapping[str, float]]) -> None:
    """Write curves of mean Dice; `prediction` is refined where a head refines, so that arms compare.

    Args:
        means: refined or not -> structure -> mean Dice over cases.
    """
    named = {refined: {MEAN: mean_dice(dice), **dice} for refined, dice in means.items()}
    board.scalars(step, {f"dice/{name}/prediction": dice for name, dice in named[max(named)].items()})
    if len(named) > 1:
        board.scalars(step, {f"dice/{name}/unrefined": dice for name, dice in named[False].items()})
        # once more under a name that only arms with a head have: a chart with a band asks for all of its curves
        board.scalars(step, {refined_dice(name): dice for name, dice in named[True].items()})


def log_first_case(board: Board, step: int, predicted: PredictedCase, structures: Sequence[str], run: str) -> None:
    """Write the voxels that were refined of one case, and as meshes its labels and their surface errors.

    Args:
        predicted: the same case at every validation, so that the slider shows it learn.
        structures: names, the first is the background.
        run: its name, for the heading of the meshes.
    """
    prediction, spacing_mm = predicted.prediction, predicted.volume.spacing_mm
    if prediction.refined:
        size = predicted.truth.shape
        points = (np.stack(np.unravel_index(prediction.index, size), axis=1) + 0.5) / np.array(size)
        shown = prediction.uncertainty_map()
        per_voxel = [mm * n / m for mm, n, m in zip(spacing_mm, size, shown.shape, strict=True)]
        title = f"{predicted.case.name}, step {step}: {len(points)} voxels refined"
        board.pictures(step, {"refinement/uncertainty": uncertainty_picture(shown, points, per_voxel, title=title)})
    log_meshes(board, step, predicted, structures, run)


def log_meshes(board: Board, step: int, predicted: PredictedCase, structures: Sequence[str], run: str) -> None:
    """Write the predicted surfaces, a colour a structure, and the true ones with the errors of each label volume."""
    prediction, to_mm, classes = predicted.prediction, predicted.volume.voxel_to_mm, len(structures)
    shown = "refined labels" if prediction.refined else "prediction"
    versions = {shown: prediction.labels} | ({"unrefined labels": prediction.unrefined} if prediction.refined else {})
    limit_mm = SURFACE_LIMIT_VOX * float(np.prod(predicted.volume.spacing_mm)) ** (1 / 3)
    (own,) = error_mesh(prediction.labels, [prediction.labels], to_mm, classes)
    named = [(structures[label], colour) for label, colour in enumerate(structure_colours(classes - 1), 1)]
    seen = [named[label - 1] for label in np.unique(own.labels)]
    surfaces = {shown: (own, label_colours(own.labels, classes), seen)}
    scale = [("too small", rgb(SMALL)), ("too large", rgb(LARGE))]
    errors = error_mesh(predicted.truth, list(versions.values()), to_mm, classes)
    for version, mesh in zip(versions, errors, strict=True):
        surfaces[f"error of {version}"] = (mesh, error_colours(mesh.error_mm, limit_mm), scale)
    for name, (mesh, colours, legend) in surfaces.items():
        if len(mesh.faces):
            lines = [[(f"{name}, all structures", INK)], legend, [(run, INK)]]
            board.mesh(step, f"surface/{name}, all structures, {run}", *captioned(mesh, colours, lines))


def log_cases(board: Board, step: int, pictures: Sequence[CasePicture]) -> None:
    """Write the worst, the median and the best case of this validation, and the first case of all."""
    named = {f"cases/{i} {rank}": (rank, case) for i, (rank, case) in enumerate(pick_extremes(pictures).items(), 1)}
    named |= {"cases/4 the same each time": ("first", pictures[0])}
    # upright: TensorBoard shows a picture about 350 pixels wide until it is clicked
    drawn = {name: case.draw(f"step {step}, {rank}", PANEL_PX, upright=True) for name, (rank, case) in named.items()}
    board.pictures(step, drawn)


def log_refinement(board: Board, step: int, scores: Sequence[CaseScores], structures: Sequence[str], arm: str) -> None:
    """Write shares of voxels fixed and broken, by structure and distance, and the calibration of the margin.

    Nothing is written for an arm without a head.

    Args:
        structures: names, the first is the background.
    """
    rows = [row for one in scores for row in one.refinement]
    calibrations = [one.calibration for one in scores if one.calibration is not None]
    total = sum(row[kind] for row in rows if row["structure"] == ALL for kind in COUNTS[:3])
    if not total:
        return
    values: dict[str, float] = {}
    for name in (ALL, *structures[1:]):
        mine = [row for row in rows if row["structure"] == name]
        below = "" if name == ALL else f"{name}/"
        for kind in ("fixed", "broken"):
            values[f"refinement/{below}{kind}"] = sum(row[kind] for row in mine) / total
    everywhere = [row for row in rows if row["structure"] == ALL]
    for edge, near in zip(DISTANCE_EDGES_MM, (*NEAR, "beyond"), strict=True):
        gained = sum(row["fixed"] - row["broken"] for row in everywhere if row["distance_upto_mm"] == edge)
        values[f"refinement/net {near}"] = gained / total
    bins = np.sum(calibrations, axis=0)
    wrong = sum(row["wrong_before"] for row in everywhere)
    values["refinement/wrong before"] = wrong / total
    values["refinement/wrong after"] = wrong / total - values["refinement/fixed"] + values["refinement/broken"]
    values["refinement/wrong as expected"] = bins[:, 2].sum() / total
    values["refinement/calibration error"] = float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total)
    board.scalars(step, values)
    board.pictures(step, refinement_charts(everywhere, arm))


def refinement_charts(rows: Sequence[Row], arm: str) -> dict[str, Picture]:
    """The report's charts of refined voxels, of one validation: by distance to the surface and by margin.

    Args:
        rows: those of `ALL` structures.
    """
    import pandas as pd

    from vnet.report.charts import calibration, fixed_and_broken
    from vnet.report.subgroups import by_bin

    table = pd.DataFrame(rows).assign(arm=arm)
    surface, margin = (by_bin(table, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
    return {
        "refinement/by distance": on_white(fixed_and_broken(surface, "distance to the true surface (mm)")),
        "refinement/by margin": on_white(calibration(margin)),
    }


def log_points(
    board: Board, step: int, image: Tensor, labels: Tensor, index: Tensor, spacing_mm: Sequence[float], classes: int
) -> None:
    """Write shares of training points by distance to the true surface, and a picture of the points in one volume.

    Args:
        image: (C, D, H, W), a training volume as the network sees it.
        labels: (D, H, W).
        index: (N,), flat voxels drawn there.
        classes: K.
    """
    truth, flat = labels.cpu().numpy(), index.cpu().numpy()
    density = point_density(truth, flat, spacing_mm, classes)
    board.scalars(step, density_curves(density))
    points = (np.stack(np.unravel_index(flat, truth.shape), axis=1) + 0.5) / np.array(truth.shape)
    title = (
        f"step {step}: {density.points[DENSITY_EDGE]:.0%} of points, {density.voxels[DENSITY_EDGE]:.0%} of voxels "
        f"within {DISTANCE_EDGES_MM[DENSITY_EDGE]:g} mm"
    )
    picture = points_picture(image[0].float().cpu().numpy(), np.maximum(truth, 0), points, spacing_mm, title)
    board.pictures(step, {"points/of one volume": picture})


def density_curves(density: Density) -> dict[str, float | None]:
    """Curve to value: the share of points within each distance, and their density against uniform points."""
    shares = zip(NEAR, density.points, strict=False)
    named: dict[str, float | None] = {f"points/{near}": float(share) for near, share in shares}
    return named | {f"points/density {NEAR[DENSITY_EDGE]}, uniform 1": density.ratio(DENSITY_EDGE)}


def on_white(figure: Figure) -> Picture:
    """Pixels of a figure of the report, whose page may have any colour, on white."""
    # the constrained layout draws twice to find its margins
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position((0.13, 0.17, 0.85, 0.79))
    figure.set_dpi(110)
    figure.patch.set(alpha=1, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
