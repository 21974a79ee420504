"""Prediction of volumes of odd kinds, measured as in `volume`: seconds, peak memory, Dice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scripts.benchmarks.volume import Trial, measure_all
from vnet.data.phantoms import PhantomKind

MR = PhantomKind(size=(40, 48, 56), spacing_mm=(1.25, 1.0, 1.0), orientations=("RAS",))
PATCH = ("--training.patch", "[48,48,48]")
STRIDES = "[[1,2,2],[1,2,2],[2,2,2],[2,2,2]]"
SLABS = ("--training.patch", "[16,96,96]", "--network.strides", STRIDES, "--network.output_stride", "[1,2,2]")


def trial(name: str, kind: PhantomKind, words: tuple[str, ...] = PATCH, **changes: Any) -> Trial:
    return Trial(name=name, learnt=kind, tried=kind, words=words, **{"steps": 60, "count": 4} | changes)


TRIALS = (
    trial("smaller than a patch", replace(MR, size=(14, 18, 20))),
    trial("larger than a patch", replace(MR, size=(70, 96, 110))),
    trial(
        "thick slices",
        replace(MR, size=(24, 160, 160), spacing_mm=(5.0, 0.7, 0.7), modality="CT", orientations=("LPS",)),
        SLABS,
    ),
    # every fourth phantom lies oblique
    trial("turned and oblique", replace(MR, orientations=("SRA", "PIR", "ASL", "LPS"))),
    trial("four channels", replace(MR, channels=4)),
    trial("binary", replace(MR, organs=1, vessels=False)),
    trial("26 classes", replace(MR, size=(56, 64, 64), organs=24, modality="CT")),
    trial("ignore label", replace(MR, ignore=0.5)),
    trial(
        "the paper's input",
        PhantomKind(
            size=(64, 128, 128),
            spacing_mm=(1.5, 1.0, 1.0),
            organs=1,
            vessels=False,
            orientations=("RAS",),
            vary=False,
            fineness=1,
        ),
        (),
        config="vnet_paper",
        arm="dense",
        steps=6,
        cases=6,
        count=1,
    ),
)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """One row a kind; `quick` trains for 3 steps and leaves out the paper's network."""
    trials = [replace(one, steps=3, cases=5, count=1) for one in TRIALS[:-1]] if quick else TRIALS
    return measure_all(trials, quick)
