"""What the board shows of a run: its page laid out, and each validation told in curves, pictures and a mesh.

Of every case only a `CaseSummary` is kept, small whatever the size of the volume, so that the worst case can be
drawn when all are scored, and so that stories can be sent between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.typing import NDArray
from torch import Tensor

from vnet.core.environment import environment
from vnet.evaluation.metrics import Row
from vnet.evaluation.point_density import Density, point_density
from vnet.evaluation.refinement import ALL, COUNTS, DISTANCE_EDGES_MM, calibration_counts, refinement_rows
from vnet.evaluation.scores import Scored, mean_dice
from vnet.report.case_pictures import CasePicture, pick_extremes
from vnet.report.meshes import error_colours, error_mesh, upright
from vnet.report.pictures import PANEL_PX, points_picture, uncertainty_picture
from vnet.report.slices import Picture
from vnet.report.tensorboard import Board, markdown_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vnet.core.config import Config

MEAN = "0 mean"  # sorts before every name of a structure
NEAR = [f"within {edge:g} mm" for edge in DISTANCE_EDGES_MM[:-1]]
LIMIT_VOX = 3  # surface error of the strongest colour, in voxels
DENSE_EDGE = 1  # the density of points is that within DISTANCE_EDGES_MM[1]: 2 mm


@dataclass(frozen=True)
class CaseSummary:
    """What is kept of a validation case.

    Attributes:
        picture: its planes and its Dice.
        refinement: rows as in refinement.csv; none without a head.
        calibration: voxels, wrong, expected wrong by margin bin; None without a head.
    """

    picture: CasePicture
    refinement: tuple[Row, ...] = ()
    calibration: NDArray[np.float64] | None = None


def open_page(board: Board, config: Config, structures: Sequence[str]) -> None:
    """What stands on the page from the start: settings, environment, a guide, and charts of several curves.

    Args:
        structures: names, the first is the background.
    """
    limit = f"{LIMIT_VOX} voxels"
    board.text(
        {
            "about/config": markdown_pairs(config.to_dict()),
            "about/environment": markdown_pairs(environment()),
            "about/guide": GUIDE.format(limit=limit),
        }
    )
    # the same layout from every arm: TensorBoard shows runs of one experiment on one page
    board.layout(charts(structures[1:]))
    board.hyperparameters(
        settings(config), [f"dice/{MEAN}/answer", *(f"dice/{name}/answer" for name in structures[1:])]
    )


def charts(structures: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Section to chart to curves of the Custom Scalars tab; `structures` without the background."""
    dice = {
        f"Dice: {name.removeprefix('0 ')}": [f"dice/{name}/{kind}" for kind in ("answer", "unrefined")]
        for name in (MEAN, *structures)
    }
    return {
        "1 with and without refinement": dice
        | {"Dice: all structures": [f"dice/{name}/answer" for name in structures]},
        "2 what refinement did": {
            "share of refined voxels": [f"refinement/{kind}" for kind in ("fixed", "broken")],
            "fixed minus broken, by distance to the surface": [f"refinement/net {near}" for near in (*NEAR, "beyond")],
            "wrong among refined voxels": [f"refinement/wrong {when}" for when in ("before", "after", "as expected")],
        },
        "3 training": {
            "training points near the surface": [f"points/{near}" for near in NEAR],
            "loss by term": [f"loss/{name}" for name in ("total", "dice", "cross_entropy", "point", "point_dice")],
        },
    }


def settings(config: Config) -> dict[str, Any]:
    """What tells runs apart in the HParams tab, numbered as it sorts by name and shows the first five.

    Each is of one type in every run, so that columns compare.
    """
    return {
        "1 arm": config.arm,
        "2 output stride": str(config.network.output_stride),
        "3 steps": config.training.steps,
        "4 fold": str(config.data.fold),
        "5 seed": config.seed,
        "6 learning rate": config.training.learning_rate,
        "7 N": config.points.num_points,
        "8 k": config.points.oversample_ratio,
        "9 beta": config.points.importance_ratio,
    }


def summarise_case(scored: Scored, dice: float, structures: Sequence[str], ignore: int | None) -> CaseSummary:
    """The story of one case.

    Args:
        dice: mean over its structures of the labels that count; NaN where all are absent.
        structures: names by label value.
        ignore: label value that is not counted.
    """
    p, steps = scored.prediction, scored.volume.voxel_to_mm
    if not p.refined:
        return CaseSummary(scored.picture(dice))
    rows = refinement_rows(
        scored.truth, p.unrefined, p.labels, p.index, p.uncertainty, steps, structures, ignore=ignore
    )
    margins = calibration_counts(scored.truth, p.unrefined, p.index, p.uncertainty, ignore)
    return CaseSummary(scored.picture(dice), tuple(rows), margins)


def show_dice(board: Board, step: int, means: dict[bool, dict[str, float]]) -> None:
    """Curves of mean Dice; `answer` is refined where a head refines, so that arms compare.

    Args:
        means: refined or not -> structure -> mean Dice over cases.
    """
    kinds = {"answer": means[max(means)]} | ({"unrefined": means[False]} if len(means) > 1 else {})
    for kind, by_structure in kinds.items():
        named = {MEAN: mean_dice(by_structure)} | by_structure
        board.scalars(step, {f"dice/{name}/{kind}": value for name, value in named.items()})


def show_first_case(board: Board, step: int, one: Scored, classes: int) -> None:
    """Where the head was asked, and the surface errors as meshes: of the same case each time, to see it learn."""
    prediction, spacing = one.prediction, one.volume.spacing_mm
    versions = {"answer": prediction.labels}
    if prediction.refined:
        versions["unrefined"] = prediction.unrefined
        size = one.truth.shape
        points = (np.stack(np.unravel_index(prediction.index, size), axis=1) + 0.5) / np.array(size)
        shown = prediction.uncertainty_map()
        per_voxel = [mm * n / m for mm, n, m in zip(spacing, size, shown.shape, strict=True)]
        title = f"{one.case.name}, step {step}: uncertainty and the {len(points)} voxels refined"
        board.pictures(step, {"refinement/uncertainty": uncertainty_picture(shown, points, per_voxel, title=title)})
    limit_mm = LIMIT_VOX * float(np.prod(spacing)) ** (1 / 3)
    meshes = error_mesh(one.truth, list(versions.values()), one.volume.voxel_to_mm, classes)
    for name, mesh in zip(versions, meshes, strict=True):
        if len(mesh.faces):
            colours = error_colours(mesh.error_mm, limit_mm)
            board.mesh(step, f"surface/{name}", upright(mesh.vertices_mm), mesh.faces, colours)


def show_cases(board: Board, step: int, stories: Sequence[CaseSummary]) -> None:
    """The case browser: worst, median and best case of this validation, and the first case of all."""
    found = [story.picture for story in stories]
    places = {f"cases/{i} {rank}": (rank, case) for i, (rank, case) in enumerate(pick_extremes(found).items(), 1)}
    places |= {"cases/4 the same each time": ("first", found[0])}
    board.pictures(step, {name: case.draw(f"step {step}, {rank}", PANEL_PX) for name, (rank, case) in places.items()})


def show_refinement(
    board: Board, step: int, stories: Sequence[CaseSummary], structures: Sequence[str], arm: str
) -> None:
    """Voxels fixed and broken, by structure and distance, and what the margin promised; nothing without a head.

    Args:
        structures: names, the first is the background.
    """
    rows = [row for story in stories for row in story.refinement]
    counted = [story.calibration for story in stories if story.calibration is not None]
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
    bins = np.sum(counted, axis=0)
    wrong = sum(row["wrong_before"] for row in everywhere)
    values["refinement/wrong before"] = wrong / total
    values["refinement/wrong after"] = wrong / total - values["refinement/fixed"] + values["refinement/broken"]
    values["refinement/wrong as expected"] = bins[:, 2].sum() / total
    values["refinement/calibration error"] = float(np.abs(bins[:, 1] - bins[:, 2]).sum() / total)
    board.scalars(step, values)
    board.pictures(step, refinement_charts(everywhere, arm))


def refinement_charts(rows: Sequence[Row], arm: str) -> dict[str, Picture]:
    """The report's figures of refined voxels, of one validation: rows of `ALL` structures."""
    import pandas as pd

    from vnet.report.charts import calibration, fixed_and_broken
    from vnet.report.refinement_counts import by_bin

    table = pd.DataFrame(rows).assign(arm=arm)
    surface, margin = (by_bin(table, ALL, bins) for bins in ("distance_upto_mm", "margin_upto"))
    return {
        "refinement/by distance": on_white(fixed_and_broken(surface, "distance to the true surface (mm)")),
        "refinement/by margin": on_white(calibration(margin)),
    }


def show_points(
    board: Board, step: int, image: Tensor, labels: Tensor, index: Tensor, spacing_mm: Sequence[float], classes: int
) -> None:
    """Where training looks: shares of its points by distance to the true surface, and the points of one volume.

    Args:
        image: (C, D, H, W), a training volume as the network sees it.
        labels: (D, H, W).
        index: (N,), flat voxels drawn there.
    """
    truth, flat = labels.cpu().numpy(), index.cpu().numpy()
    density = point_density(truth, flat, spacing_mm, classes)
    board.scalars(step, density_curves(density))
    points = (np.stack(np.unravel_index(flat, truth.shape), axis=1) + 0.5) / np.array(truth.shape)
    two = DISTANCE_EDGES_MM[DENSE_EDGE]
    title = (
        f"step {step}: {density.points[DENSE_EDGE]:.0%} of {len(flat)} points within {two:g} mm of a surface, "
        f"{density.voxels[DENSE_EDGE]:.0%} of voxels"
    )
    picture = points_picture(image[0].float().cpu().numpy(), np.maximum(truth, 0), points, spacing_mm, title)
    board.pictures(step, {"points/of one volume": picture})


def density_curves(density: Density) -> dict[str, float | None]:
    shares = zip(NEAR, density.points, strict=False)
    named: dict[str, float | None] = {f"points/{near}": float(share) for near, share in shares}
    return named | {f"points/density {NEAR[DENSE_EDGE]}, uniform 1": density.ratio(DENSE_EDGE)}


def on_white(figure: Figure) -> Picture:
    """The pixels of a figure that was made for a page of any colour."""
    # the constrained layout draws twice to find its margins
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position((0.13, 0.17, 0.85, 0.79))
    figure.set_dpi(110)
    figure.patch.set(alpha=1, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


GUIDE = """\
| group | shows |
|---|---|
| 1 dice | validation Dice; *answer* is refined where a head refines, *unrefined* the same network without it |
| 2 cases | worst, median and best case of each validation: outlines of truth, unrefined and refined labels |
| 3 surface | Mesh tab: the true surface of one case, seen from its front; blue: the prediction falls short, \
orange: it reaches too far, full colour at {limit} |
| 4 refinement | shares of the refined voxels that were fixed and broken, by structure and distance to the surface; \
what the margin of the two best logits lets expect (*wrong as expected*) |
| 5 points | share of training points by distance to the true surface, in one training volume |
| 6 loss | terms of the loss, unweighted |
| 7 optimiser | learning rate, gradient norm, steps dropped as not finite |
| 8 speed | steps per second |
"""
