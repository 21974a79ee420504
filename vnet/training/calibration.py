"""`points.max_margin: auto`: the margin that holds the head's label changes, measured at the end of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vnet.core.config import Config
from vnet.core.distributed import gather, shard
from vnet.core.randomness import CALIBRATION, sample_seed
from vnet.data.prepared import PreparedData
from vnet.data.volumes import read_image
from vnet.inference.calibration import Margins, calibrated_margin, changed_margins, share_within
from vnet.model.segmenter import Segmenter

CASES = 8  # of the training fold, and as many of the validation fold


def calibrate_margin(model: Segmenter, prepared: PreparedData, config: Config) -> dict[str, float | None]:
    """Set `model.max_margin` from training cases, and measure what it holds.

    Training cases are fitted better than others: hence the share on validation cases, which decide nothing.

    Args:
        model: in evaluation mode, with a head.

    Returns:
        For run.json: `max_margin`, and the share of the head's label changes within it on training and on validation
        cases; None where no label changes.
    """
    margins = [measure(model, prepared, names, config) for names in (prepared.fold.train, prepared.fold.val)]
    model.max_margin = calibrated_margin(margins[0])
    shares = [share_within(one, model.max_margin) for one in margins]
    return {
        "max_margin": round(model.max_margin, 5),
        "changes_within_margin_training": shares[0],
        "changes_within_margin_validation": shares[1],
    }


def margin_text(facts: Mapping[str, float | None]) -> str:
    """What `calibrate_margin` found, in a line."""
    shares = [
        f"{share:.1%} on {kind} cases"
        for kind in ("training", "validation")
        if (share := facts[f"changes_within_margin_{kind}"]) is not None
    ]
    held = f" holds {' and '.join(shares)} of the labels that the head changes" if shares else ": no label changes"
    return f"margin {facts['max_margin']:.3f}{held}"


def measure(model: Segmenter, prepared: PreparedData, names: Sequence[str], config: Config) -> list[Margins]:
    """`changed_margins` of at most `CASES` of the named cases, evenly spaced, which the processes share."""
    count = min(CASES, len(names))
    chosen = [(number, names[number * len(names) // count]) for number in range(count)]
    mine = []
    for number, name in shard(chosen):
        (case,) = prepared.unchanged_cases((name,))
        generator = torch.Generator().manual_seed(sample_seed(config.seed, 0, number, CALIBRATION))
        mine.append(changed_margins(model, read_image(case.images), prepared.preprocessing, config, generator))
    return [one for part in gather(mine) for one in part]
