"""Prediction of volumes: large ones, and those of odd kinds.

Seconds, peak memory and Dice, each prediction in a process of its own, which reads, tiles, renders, refines and writes.
Networks are first trained for some steps on phantoms of the same kind (other subjects), so that their labels have
surfaces as real ones do. Phantoms and runs are kept in runs/benchmark and used again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.harness import Row
from vnet.data.dataset import open_dataset
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.data.volumes import read_label
from vnet.evaluation.metrics import dice_scores

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "runs/benchmark"

PREDICT = """
import json, sys, time
from vnet.core.hardware import peak_memory_mib
from vnet.inference.label_files import predict_files
run, source, output, *overrides = sys.argv[1:]
start = time.perf_counter()
predict_files(run, source, output, overrides=overrides)
print(json.dumps({"seconds": time.perf_counter() - start, "peak_memory_mib": round(peak_memory_mib())}))
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A kind of volume and the network that is tried on it.

    Attributes:
        name: of the row; trials of one name share their volumes.
        learnt: phantoms trained on, `cases` of them.
        tried: phantoms predicted, `count` of them, other subjects.
        config: file below configs/.
        arm: of the config.
        words: further keys of the config, as on the command line.
        steps: of training.
    """

    name: str
    learnt: PhantomKind
    tried: PhantomKind
    config: str = "hippocampus"
    arm: str = "pointrend_s2"
    words: tuple[str, ...] = ()
    steps: int = 100
    cases: int = 10
    count: int = 1

    def train(self, folder: Path) -> Path:
        """The run of this trial below `folder`, trained there if it is not."""
        data = folder / self.name / "learnt"
        if not data.exists():
            write_phantoms(data, self.cases, seed=0, kind=self.learnt)
        fixed = {
            "arm": self.arm,
            "name": f"{self.name}_{self.steps}",
            "run_root": folder / "runs",
            "data.root": data,
            "study.keep": "false",
            "training.steps": self.steps,
            "training.validate_every": 0,
        }
        keys = [word for key, value in fixed.items() for word in (f"--{key}", str(value))]
        script, config = ROOT / "scripts/train.py", ROOT / f"configs/{self.config}.yaml"
        run_process([sys.executable, str(script), "--config", str(config), *keys, *self.words])
        return folder / "runs" / f"{self.name}_{self.steps}" / self.arm / "fold0_seed0"

    def measure(self, folder: Path) -> Row:
        """One row: the volume, seconds a volume, peak memory, mean Dice."""
        run, data = self.train(folder), folder / self.name / "tried"
        if not data.exists():
            write_phantoms(data, self.count, seed=1, kind=self.tried)
        with tempfile.TemporaryDirectory() as output:
            told = run_process([sys.executable, "-c", PREDICT, str(run), str(data / "imagesTr"), output])
            dice = score(data, Path(output))
        figures = json.loads(told.splitlines()[-1])
        return {
            "volume": self.name,
            "arm": self.arm,
            **describe(self.tried),
            "volumes": self.count,
            "steps": self.steps,
            "seconds": round(figures["seconds"] / self.count, 2),
            "peak_memory_mib": figures["peak_memory_mib"],
            "dice": round(dice, 3),
        }


def describe(kind: PhantomKind) -> Row:
    """A kind of volume as cells of a row; size and spacing are in the order x, y, z."""
    return {
        "size": "x".join(f"{n}" for n in reversed(kind.size)),
        "spacing_mm": "x".join(f"{s:g}" for s in reversed(kind.spacing_mm)),
        "orientation": " ".join(kind.orientations),
        "modality": kind.modality,
        "channels": kind.channels,
        "classes": len(kind.structures),
    }


def run_process(words: Sequence[str]) -> str:
    """The standard output of a process.

    Raises:
        RuntimeError: it failed; the message is its stderr.
    """
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def score(data: Path, predicted: Path) -> float:
    """Mean Dice over structures, then over volumes."""
    dataset = open_dataset(data)
    means = []
    for case in dataset.cases:
        assert case.label is not None
        label = read_label(predicted / f"{case.name}.nii.gz").array
        scores = dice_scores(label, read_label(case.label).array, len(dataset.structures), dataset.ignore)
        means.append(np.nanmean(scores))
    return float(np.mean(means))


MR = PhantomKind(size=(44, 56, 44), spacing_mm=(1.0, 1.0, 1.0), vessels=False)
LONG = replace(MR, size=(300, 512, 512), spacing_mm=(1.0, 0.8, 0.8), orientations=("RAS",), fineness=1, vary=False)
CT = PhantomKind(
    size=(100, 200, 200),
    spacing_mm=(2.5, 1.0, 1.0),
    organs=1,
    vessels=False,
    modality="CT",
    orientations=("LPS",),
    fineness=1,
)
BODY = replace(CT, size=(600, 512, 512), spacing_mm=(1.0, 0.8, 0.8), vary=False)
AT_1_MM = ("--data.spacing_mm", "[1,1,1]")
TRIALS = (
    Trial(name="long", learnt=MR, tried=LONG, words=AT_1_MM),
    Trial(name="long", learnt=MR, tried=LONG, words=AT_1_MM, arm="dense"),
    Trial(name="body", learnt=CT, tried=BODY, config="large_ct", arm="pointrend_s122", steps=30, cases=6),
)
# voxels of the volume of a quick run
SHORT = replace(TRIALS[0], tried=replace(LONG, size=(60, 96, 96)), steps=10)


def measure_all(trials: Sequence[Trial], quick: bool) -> list[Row]:
    """One row a trial; `quick` keeps no files."""
    if not quick:
        return [trial.measure(KEPT) for trial in trials]
    with tempfile.TemporaryDirectory() as folder:
        return [trial.measure(Path(folder)) for trial in trials]


def run(quick: bool = False) -> list[Row]:
    """One row a trial; `quick` takes a small volume and few steps."""
    return measure_all((SHORT,) if quick else TRIALS, quick)


SMALL_MR = PhantomKind(size=(40, 48, 56), spacing_mm=(1.25, 1.0, 1.0), orientations=("RAS",))
PATCH = ("--training.patch", "[48,48,48]")
STRIDES = "[[1,2,2],[1,2,2],[2,2,2],[2,2,2]]"
SLABS = ("--training.patch", "[16,96,96]", "--network.strides", STRIDES, "--network.output_stride", "[1,2,2]")


def kind_trial(name: str, kind: PhantomKind, words: tuple[str, ...] = PATCH, **changes: Any) -> Trial:
    return Trial(name=name, learnt=kind, tried=kind, words=words, **{"steps": 60, "count": 4} | changes)


KINDS = (
    kind_trial("smaller than a patch", replace(SMALL_MR, size=(14, 18, 20))),
    kind_trial("larger than a patch", replace(SMALL_MR, size=(70, 96, 110))),
    kind_trial(
        "thick slices",
        replace(SMALL_MR, size=(24, 160, 160), spacing_mm=(5.0, 0.7, 0.7), modality="CT", orientations=("LPS",)),
        SLABS,
    ),
    # every fourth phantom lies oblique
    kind_trial("turned and oblique", replace(SMALL_MR, orientations=("SRA", "PIR", "ASL", "LPS"))),
    kind_trial("four channels", replace(SMALL_MR, channels=4)),
    kind_trial("binary", replace(SMALL_MR, organs=1, vessels=False)),
    kind_trial("26 classes", replace(SMALL_MR, size=(56, 64, 64), organs=24, modality="CT")),
    kind_trial("ignore label", replace(SMALL_MR, ignore=0.5)),
    kind_trial(
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


def run_kinds(quick: bool = False) -> list[dict[str, Any]]:
    """One row a kind; `quick` trains for 3 steps and leaves out the paper's network."""
    trials = [replace(one, steps=3, cases=5, count=1) for one in KINDS[:-1]] if quick else KINDS
    return measure_all(trials, quick)
