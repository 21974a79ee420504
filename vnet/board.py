"""What TensorBoard shows of a run, in an order that reads from top to bottom.

TensorBoard sorts groups of tags by name, so each group carries its place as a number; callers write
`dice/anterior/refined` and the page shows `1 dice/anterior/refined`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# the outcome first, then what refinement did, then how training went, then what it cost
GROUPS = ("dice", "validation", "refinement", "loss", "optimiser", "speed", "about")


class Board:
    """Event files in a run's folder.

    Args:
        folder: where they go; created when missing.
        start_step: the first step that will be logged from now on; what an interrupted run wrote at or after
            it is hidden, so that no step shows twice.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.start_step = start_step
        self.writer = SummaryWriter(str(folder), purge_step=start_step or None, flush_secs=30)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """One point a curve; `None` (a structure absent from every case) is left out.

        Args:
            step: finished steps.
            values: `group/name` to value, as `loss/total` or `dice/anterior/refined`.
        """
        for name, value in values.items():
            if value is not None:
                self.writer.add_scalar(tag(name), value, step)

    def pictures(self, step: int, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """`group/name` to (height, width, 3), 0 to 255."""
        for name, picture in pictures.items():
            self.writer.add_image(tag(name), picture, step, dataformats="HWC")

    def text(self, texts: Mapping[str, str]) -> None:
        """`group/name` to Markdown, written at the start step."""
        for name, text in texts.items():
            self.writer.add_text(tag(name), text, self.start_step)

    def layout(self, structures: Sequence[str], *, head: bool, losses: Sequence[str] = ()) -> None:
        """The custom-scalars page: the charts that people compare, several curves in each.

        Args:
            structures: names without the background.
            head: whether there are curves with refinement.
            losses: names of the loss terms (`loss/NAME`).
        """
        kinds = ("refined", "unrefined") if head else ("unrefined",)
        names = ["mean", *structures]
        dice = {f"Dice: {name}": [tag(f"dice/{name}/{kind}") for kind in kinds] for name in names}
        together = {"Dice: all structures": [tag(f"dice/{name}/{kinds[0]}") for name in structures]}
        training = {"loss by term": [tag(f"loss/{name}") for name in losses]} if losses else {}
        charts = {"with and without refinement" if head else "validation": dice | together, "training": training}
        self.writer.add_custom_scalars(
            {
                # the plugin reads each tag as a regular expression
                group: {name: ["Multiline", [f"^{re.escape(t)}$" for t in tags]] for name, tags in part.items()}
                for group, part in charts.items()
                if part
            }
        )

    def hyperparameters(self, values: Mapping[str, Any], scores: Sequence[str]) -> None:
        """A row of the HParams tab.

        Args:
            values: settings of the run; what is no bool, number or text is shown as text.
            scores: curves (`group/name`) whose last values are the run's scores.
        """
        plain = {key: v if isinstance(v, (bool, int, float, str)) else str(v) for key, v in values.items()}
        # not add_hparams: it makes a run of its own, and adds a point to each score's curve at step 0
        for summary in hparams(plain, dict.fromkeys((tag(name) for name in scores), 0.0)):
            self.writer._get_file_writer().add_summary(summary)

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
    """`loss/total` -> `4 loss/total`.

    Raises:
        ValueError: the group is not one of `GROUPS`.
    """
    group, _, rest = name.partition("/")
    if group not in GROUPS or not rest:
        raise ValueError(f"a curve must be named GROUP/NAME with a group of {GROUPS}, got {name!r}")
    return f"{GROUPS.index(group) + 1} {group}/{rest}"


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
