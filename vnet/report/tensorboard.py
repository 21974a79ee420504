"""Event files of a run, with tags that TensorBoard shows in the order of the page.

TensorBoard sorts groups of tags by name, so each group carries its place as a number: callers write
`dice/anterior/prediction` and the page shows `1 dice/anterior/prediction`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# the guide first, then Dice, cases and refinement, then training and its cost
GROUPS = ("guide", "dice", "cases", "surface", "refinement", "points", "loss", "optimiser", "speed", "about")


class Board:
    """Event files in a run's folder.

    Args:
        folder: of the event files; created when missing.
        start_step: the first step that will be logged from now on. Events of an earlier start at or after this step
            are hidden, so that no step shows twice.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.start_step = start_step
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

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Lay out the Custom Scalars tab: charts of several curves.

        Args:
            charts: section to title to curves (`group/name`).
        """
        self.writer.add_custom_scalars(
            {
                # the plugin reads each tag as a regular expression
                section: {
                    title: ["Multiline", [f"^{re.escape(tag(name))}$" for name in names]]
                    for title, names in part.items()
                }
                for section, part in charts.items()
            }
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
