"""What a run's TensorBoard page shows before its first step: guide, config, environment, charts, hyper-parameters."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vnet.core.environment import environment
from vnet.core.files import PART
from vnet.evaluation.refinement import DISTANCE_EDGES_MM
from vnet.report.tensorboard import Board, markdown_pairs

if TYPE_CHECKING:
    from vnet.core.config import Config

MEAN = "0 mean"  # sorts before every name of a structure
NEAR = [f"within {edge:g} mm" for edge in DISTANCE_EDGES_MM[:-1]]
SURFACE_LIMIT_VOX = 3  # surface error of the strongest colour, in voxels
CURVES = 4  # at most, in a chart


def open_page(board: Board, config: Config, structures: Sequence[str]) -> None:
    """Write config, environment, charts of several curves and hyper-parameters.

    Args:
        structures: names, the first is the background.
    """
    board.text({"about/config": markdown_pairs(config.to_dict()), "about/environment": markdown_pairs(environment())})
    # the same layout from every arm: TensorBoard shows runs of one experiment on one page
    board.layout(charts(structures[1:]))
    scores = [f"dice/{name}/prediction" for name in (MEAN, *structures[1:])]
    board.hyperparameters(hyperparameters(config), scores)


def write_guide(experiment: Path) -> None:
    """Write the guide to the page, once for all runs below `experiment`, as a TensorBoard run of its own."""
    folder = experiment / "guide"
    if folder.exists():
        return
    unfinished = experiment / f".guide.{os.getpid()}{PART}"
    shutil.rmtree(unfinished, ignore_errors=True)
    with Board(unfinished) as board:
        board.text({"guide/what the groups show": GUIDE})
    with suppress(OSError):  # another run has written it meanwhile
        unfinished.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)


def charts(structures: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Section to chart to curves of the Custom Scalars tab, at most `CURVES` a chart.

    Args:
        structures: names without the background.
    """
    dice = {
        f"Dice: {name.removeprefix('0 ')}": [f"dice/{name}/{version}" for version in ("prediction", "unrefined")]
        for name in (MEAN, *structures)
    }
    for first in range(0, len(structures), CURVES):
        group = structures[first : first + CURVES]
        dice[f"Dice: structures {first + 1} to {first + len(group)}"] = [f"dice/{name}/prediction" for name in group]
    return {
        "1 Dice with and without refinement": dice,
        "2 refinement": {
            "share of refined voxels": [f"refinement/{kind}" for kind in ("fixed", "broken")],
            "fixed minus broken, near the surface": [f"refinement/net {near}" for near in NEAR[:3]],
            "fixed minus broken, further away": [f"refinement/net {near}" for near in (*NEAR[3:], "beyond")],
            "wrong among refined voxels": [f"refinement/wrong {when}" for when in ("before", "after", "as expected")],
        },
        "3 training": {
            "training points near the surface": [f"points/{near}" for near in NEAR[:CURVES]],
            "loss of all voxels": [f"loss/{name}" for name in ("total", "dice", "cross_entropy")],
            "loss at points": [f"loss/{name}" for name in ("point", "point_dice")],
        },
    }


def hyperparameters(config: Config) -> dict[str, str]:
    """What tells runs apart in the HParams tab, as text, which it does not round.

    The tab sorts by name and shows the first five columns: hence the numbers.
    """
    points = config.points
    values = {
        "1 arm": config.arm,
        "2 output stride": config.network.output_stride,
        "3 steps": config.training.steps,
        "4 fold": config.data.fold,
        "5 seed": config.seed,
        "6 learning rate": config.training.learning_rate,
        "7 N": points.num_points,
        "8 k": points.oversample_ratio,
        "9 beta": points.importance_ratio,
    }
    return {name: str(value) for name, value in values.items()}


GUIDE = f"""\
| group | shows |
|---|---|
| 1 dice | Dice of the validation cases; *prediction* is refined where the arm has a head, *unrefined* is the same \
network without its head |
| 2 cases | worst, median and best case of each validation: outlines of truth, unrefined and refined labels |
| 3 surface | Mesh tab: the true surface of one case, seen from its front; blue: the prediction falls short, \
orange: it reaches too far, full colour at {SURFACE_LIMIT_VOX} voxels |
| 4 refinement | shares of the refined voxels that were fixed and broken, by structure and distance to the surface; \
*wrong as expected*: the share of wrong voxels that the margin of the two best logits predicts |
| 5 points | share of training points by distance to the true surface, in one training volume |
| 6 loss | terms of the loss, unweighted |
| 7 optimiser | learning rate, gradient norm, steps dropped as not finite |
| 8 speed | steps per second |
| 9 about | config and environment |
"""
