"""Event files of a run, with tags that TensorBoard shows in the order of the page.

TensorBoard sorts groups of tags by name, so each group carries its place as a number: callers write
`dice/anterior/prediction` and the page shows `1 dice/anterior/prediction`.

Before the first step the page gets a guide, the config, the environment, charts and hyper-parameters.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vnet.core.environment import environment
from vnet.core.files import PART
from vnet.evaluation.refinement import DISTANCE_EDGES_MM

if TYPE_CHECKING:
    from vnet.core.config import Config

# the guide first, then Dice, cases and refinement, then training and its cost
GROUPS = ("guide", "dice", "cases", "surface", "refinement", "points", "loss", "optimiser", "speed", "about")


class Band(NamedTuple):
    """A chart of one curve and of the band between two, each `group/name`. A run must have all of them, or none."""

    line: str
    low: str
    high: str


class Board:
    """Event files in a run's folder.

    Args:
        folder: of the event files; created when missing.
        start_step: the first step that will be logged from now on. Events of an earlier start at or after this step
            are hidden, so that no step shows twice.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.start_step = start_step
        while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(0.05)  # TensorBoard reads files by name: by second, then by a number without leading zeros
        self.writer = SummaryWriter(str(folder), purge_step=start_step or None, flush_secs=30)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to each curve; `None` (a structure absent from every case) is left out.

        Args:
            step: finished steps.
            values: `group/name` to value, as `loss/total` or `dice/anterior/prediction`.
        """
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(tag(name), value, step)

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Add pictures: `group/name` to (height, width, 3), 0 to 255."""
        for name, picture in pictures.items():
            self.writer.add_image(tag(name), picture, step, dataformats="HWC")

    def mesh(self, step: int, name: str, vertices: NDArray[Any], faces: NDArray[Any], colours: NDArray[Any]) -> None:
        """Add a surface to the Mesh tab.

        Args:
            name: `group/name`; both are in the heading, as the tab shows nothing else of a tag.
            vertices: (V, 3), in the axes of the viewer: right, up, towards the eye.
            faces: (F, 3).
            colours: (V, 3), 0 to 255.
        """
        both_sides = {"material": {"cls": "MeshStandardMaterial", "side": 2, "roughness": 0.9}}
        heading = tag(name).replace("/", ", ", 1)
        points, colours_of, triangles = (torch.from_numpy(part)[None] for part in (vertices, colours, faces))
        self.writer.add_mesh(f"{heading}/mesh", points, colours_of, triangles, both_sides, step)

    def text(self, texts: Mapping[str, str]) -> None:
        """Add texts at the start step: `group/name` to Markdown."""
        for name, text in texts.items():
            self.writer.add_text(tag(name), text, self.start_step)

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str] | Band]]) -> None:
        """Lay out the Custom Scalars tab.

        Args:
            charts: section to title to curves (`group/name`), or to a band.
        """

        def chart(shown: Sequence[str] | Band) -> list[Any]:
            if isinstance(shown, Band):
                return ["Margin", [tag(name) for name in (shown.line, shown.low, shown.high)]]
            # the plugin reads each tag as a regular expression
            return ["Multiline", [f"^{re.escape(tag(name))}$" for name in shown]]

        self.writer.add_custom_scalars(
            {section: {title: chart(shown) for title, shown in part.items()} for section, part in charts.items()}
        )

    def hyperparameters(self, values: Mapping[str, Any], scores: Sequence[str]) -> None:
        """Begin a row of the HParams tab; `finish` ends it.

        Args:
            values: settings of the run; values other than bool, number and text are shown as text.
            scores: curves (`group/name`) whose last values are the run's scores.
        """
        plain = {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in values.items()}
        # not add_hparams: it makes a run of its own, and adds a point to each score's curve at step 0
        experiment, start, _ = hparams(plain, dict.fromkeys((tag(name) for name in scores), 0.0))
        for summary in (experiment, start):
            self.writer._get_file_writer().add_summary(summary)

    def finish(self, step: int) -> None:
        """End the row of the HParams tab: the run is complete."""
        self.writer._get_file_writer().add_summary(hparams({}, {})[2], step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tag(name: str) -> str:
    """`loss/total` -> `6 loss/total`; brackets are dropped, as Custom Scalars draws no curve whose name has one.

    Raises:
        ValueError: the group is not one of `GROUPS`.
    """
    group, _, rest = name.partition("/")
    if group not in GROUPS or not rest:
        raise ValueError(f"a curve must be named GROUP/NAME with a group of {GROUPS}, got {name!r}")
    plain = re.sub(r"[()\[\]{}]", "", rest)
    return f"{GROUPS.index(group)} {group}/{plain}"


def markdown_pairs(values: Mapping[str, Any]) -> str:
    """A two-column Markdown table, for config and environment; nested mappings become dotted keys."""
    lines = ["| key | value |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in _flatten(values)]
    return "\n".join(lines)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        pairs += _flatten(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", value)]
    return pairs


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


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


def refined_dice(structure: str) -> str:
    """The curve of an arm with a head that `dice/STRUCTURE/prediction` holds too."""
    return f"refinement/dice {structure}"


def charts(structures: Sequence[str]) -> dict[str, dict[str, Sequence[str] | Band]]:
    """Section to chart of the Custom Scalars tab; a chart has at most `CURVES` curves a run.

    Args:
        structures: names without the background.
    """
    titles = {name: name.removeprefix("0 ") for name in (MEAN, *structures)}
    return {
        "1 Dice": {title: [f"dice/{name}/prediction"] for name, title in titles.items()},
        "2 Dice, line: refined, lower end of the band: unrefined": {
            title: Band(refined_dice(name), f"dice/{name}/unrefined", refined_dice(name))
            for name, title in titles.items()
        },
        "3 refined voxels": {
            "share of refined voxels": [f"refinement/{kind}" for kind in ("fixed", "broken")],
            "fixed minus broken, near the surface": [f"refinement/net {near}" for near in NEAR[:3]],
            "fixed minus broken, further away": [f"refinement/net {near}" for near in (*NEAR[3:], "beyond")],
            "wrong among refined voxels": [f"refinement/wrong {when}" for when in ("before", "after", "as expected")],
        },
        "4 training": {
            "training points near the surface": [f"points/{near}" for near in NEAR[:CURVES]],
            "loss of all voxels": [f"loss/{name}" for name in ("total", "dice", "cross_entropy")],
            "loss at points": [f"loss/{name}" for name in ("point", "point_dice")],
        },
    }


def hyperparameters(config: Config) -> dict[str, str]:
    """What tells runs apart in the HParams tab, as text, which it does not round.

    The tab sorts columns by name, hence the numbers, and puts Dice behind them: with four of them it is in view.
    """
    points, training = config.points, config.training
    head = f"{points.num_points}, {points.oversample_ratio:g}, {points.importance_ratio:g}"
    return {
        "1 arm": config.arm,
        "2 fold, seed": f"{config.data.fold}, {config.seed}",
        "3 steps, learning rate": f"{training.steps}, {training.learning_rate:g}",
        "4 stride; N, k, beta": f"{config.network.output_stride}; {head if points.num_points else 'no head'}",
    }


GUIDE = f"""\
| group | shows |
|---|---|
| 1 dice | Dice of the validation cases; *prediction* is refined where the arm has a head, *unrefined* is the same \
network without its head |
| 2 cases | worst, median and best case of each validation: a colour a structure, the truth as a tint, unrefined and \
refined labels as outlines |
| 3 surface | Mesh tab: one case, seen from its front: the predicted surfaces, a colour a structure; the true ones, \
blue where the prediction falls short, orange where it reaches too far, full colour at {SURFACE_LIMIT_VOX} voxels |
| 4 refinement | shares of the refined voxels that were fixed and broken, by structure and distance to the surface; \
*wrong as expected*: the share of wrong voxels that the margin of the two best logits predicts |
| 5 points | share of training points by distance to the true surface, in one training volume |
| 6 loss | terms of the loss, unweighted |
| 7 optimiser | learning rate, gradient norm, steps dropped as not finite |
| 8 speed | steps per second |
| 9 about | config and environment |
"""
