"""Arms of a study: what each is, how it was trained and what it costs."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vnet.core.config import ARMS, flatten, merge
from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.tables import Table, marked_side

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD with Nesterov momentum .99"}
SCHEDULES = {"one_cycle": "one cycle: cosine up over 30 % of the steps, then down", "poly": "(1 - t)^0.9"}
# numbers of vnet.data.augmentation, written out: importing it imports torch, which no report needs
AUGMENTATION = (
    "rotation up to 15 degrees, scale up to 1.2 (40% of samples); now and then blur, contrast, brightness, gamma, noise"
)
# keys of an arm that its description says in words
DESCRIBED = ("network.output_stride", "points.num_points", "points.refine_fraction")


def arms_table(study: Study) -> Table:
    """What each arm is, from its config; no rows where no run has one."""
    rows = []
    for arm in study.arms:
        config = next((run.config for run in study.runs if run.arm == arm and run.config.get("network")), None)
        if config is not None:
            rows.append((arm, describe_arm(config, _own_keys(study, arm))))
    return Table("The arms", ("arm", "what it is"), tuple(rows))


def describe_arm(config: Mapping[str, Any], own_keys: Mapping[str, Any]) -> str:
    """Where the decoder stops, what the head does, and the keys in which the arm differs from the study.

    Args:
        config: nested keys of a resolved config.
        own_keys: dotted keys that the arm sets.
    """
    stride, points = config["network"]["output_stride"], config.get("points") or {}
    full = stride in (1, [1, 1, 1])
    decoder = "decoder up to full resolution" if full else f"decoder stops at stride {_plain(stride)}"
    on_network = points.get("logits") == "network"
    if points.get("num_points") and not on_network:
        head = f"head refines {points['refine_fraction']:.0%} of the voxels"
    else:
        head = "no head" if full else "logits are interpolated, no head"
    others = [f"{key}: {_plain(value)}" for key, value in own_keys.items() if key not in DESCRIBED]
    return "; ".join([f"{decoder}, {head}", *others])


def training_table(study: Study) -> Table:
    """How the runs were trained, a row a setting; a setting that differs between arms has a row for each value."""
    rows = []
    for name, value_of in SETTINGS.items():
        by_value: dict[str, list[str]] = {}
        for arm in study.arms:
            values = dict.fromkeys(value_of(run, study) for run in study.runs if run.arm == arm)
            by_value.setdefault(", ".join(value for value in values if value) or "-", []).append(arm)
        if [*by_value] != ["-"]:
            rows += [(name, "all" if len(by_value) == 1 else ", ".join(arms), v) for v, arms in by_value.items()]
    return Table("How the arms were trained", ("setting", "arms", "value"), tuple(rows), first_number=3)


def _steps(run: RunRecord, study: Study) -> str:
    return _plain(run.info.get("steps") or _key(run, "training.steps"))


def _training_cases(run: RunRecord, study: Study) -> str:
    return _plain(_count_training_cases(run))


def _epochs(run: RunRecord, study: Study) -> str:
    cases, batch = _count_training_cases(run), _key(run, "training.batch")
    steps = run.info.get("steps") or _key(run, "training.steps")
    return f"{steps * batch / cases:.1f}" if cases and batch and steps else ""


def _batch(run: RunRecord, study: Study) -> str:
    batch, patch = _key(run, "training.batch"), _key(run, "training.patch")
    return f"{batch} of {_plain(patch)} voxels (z, y, x)" if batch and patch else ""


def _optimizer(run: RunRecord, study: Study) -> str:
    name = _key(run, "training.optimizer")
    if not name:
        return ""
    rate, decay, norm = (_key(run, f"training.{key}") for key in ("learning_rate", "weight_decay", "clip_norm"))
    return f"{OPTIMIZERS.get(name, name)}, learning rate {rate:g}, weight decay {decay:g}, gradient norm up to {norm:g}"


def _schedule(run: RunRecord, study: Study) -> str:
    name = _key(run, "training.schedule")
    return SCHEDULES.get(name, _plain(name))


def _loss(run: RunRecord, study: Study) -> str:
    if not run.config.get("training"):
        return ""
    points = [
        f"{weight:g} x {name} at points"
        for name, key in (("cross-entropy", "point_weight"), ("Dice", "point_dice_weight"))
        if _key(run, "points.num_points") and (weight := _key(run, f"training.{key}"))
    ]
    own = " of the network's own logits" if _key(run, "points.logits") == "network" and points else ""
    share = _key(run, "training.top_k_share") or 1
    hardest = "" if share == 1 else f" (of the {share:.0%} of the voxels where it is largest)"
    return " + ".join([f"Dice + cross-entropy{hardest} of the network's logits", *points]) + own


def _augmentation(run: RunRecord, study: Study) -> str:
    if not run.config.get("training"):
        return ""
    if _key(run, "training.augment") is False:
        return "none"
    mirrored = _key(run, "training.mirror")
    return f"{AUGMENTATION}; " + (f"mirrored along {', '.join(mirrored)}" if mirrored else "not mirrored")


def _tree(run: RunRecord, study: Study) -> str:
    commit = str(run.info.get("commit") or "")
    if not commit:
        return ""
    return f"{commit.rstrip('+')}, from a changed tree" if commit.endswith("+") else f"{commit}, tree not changed"


SETTINGS: dict[str, Callable[[RunRecord, Study], str]] = {
    "steps": _steps,
    "training cases": _training_cases,
    "epochs": _epochs,
    "batch": _batch,
    "optimiser": _optimizer,
    "learning-rate schedule": _schedule,
    "loss": _loss,
    "augmentation": _augmentation,
    "precision": lambda run, study: _plain(_key(run, "training.precision")),
    "working spacing (z, y, x) in mm": lambda run, study: _plain(_key(run, "data.spacing_mm") or "median of the data"),
    "width of the first stage, kernel, norm": lambda run, study: ", ".join(
        _plain(_key(run, f"network.{key}")) for key in ("width", "kernel", "norm") if _key(run, f"network.{key}")
    ),
    "commit": _tree,
}


def _count_training_cases(run: RunRecord) -> int | None:
    """What the run noted, else the length of its fold in splits.json beside its table."""
    if run.info.get("training_cases"):
        return int(run.info["training_cases"])
    try:
        folds = json.loads(run.table.with_name("splits.json").read_text(encoding="utf-8"))["folds"]
        return len(folds[int(run.fold)]["train"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _own_keys(study: Study, arm: str) -> dict[str, Any]:
    own = (study.settings.get("arms") or {}).get(arm) or {}
    return flatten(merge(ARMS.get(arm, {}), own))


def _key(run: RunRecord, key: str) -> Any:
    section, name = key.split(".")
    inner = run.config.get(section)
    return inner.get(name) if isinstance(inner, Mapping) else None


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


PREDICTION = "multiply_adds_prediction"  # runs of before have none
ALONE = "seconds_per_step_alone"  # from the benchmark of steps, not from the runs
COSTS = {
    ALONE: "s per step, alone",
    "seconds_per_step": "s per step",
    "seconds": "s of training",
    "seconds_per_case": "s per case",
    "peak_memory_mib": "peak MiB",
    "peak_memory_prediction_mib": "peak MiB, prediction",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    PREDICTION: "multiply-adds, prediction",
}


SECONDS = ("seconds_per_step", "seconds", "seconds_per_case")


def costs(study: Study) -> dict[str, dict[str, float]]:
    """Arm to the means over its runs of what run.json says of `COSTS`; NaN where it says nothing.

    Seconds are means over the runs of one machine, where one ran every arm.
    """
    found: dict[str, dict[str, float]] = {}
    alone, machine = steps_alone(study), timed_on(study)
    for arm in study.arms:
        runs = [run for run in study.runs if run.arm == arm]
        infos = [run.info for run in runs]
        timed = [run.info for run in runs if machine is None or run.foreign or run.machine in ("", machine)]
        values = {
            key: [info[key] for info in (timed if key in SECONDS else infos) if isinstance(info.get(key), (int, float))]
            for key in COSTS
        }
        found[arm] = {key: float(np.mean(v)) if v else math.nan for key, v in values.items()}
        found[arm][ALONE] = alone.get(arm, math.nan)
    return found


def timed_on(study: Study) -> str | None:
    """Of the machines that ran every arm, that of most runs, so that seconds compare; None where there is none."""
    runs = [run for run in study.runs if run.machine and not run.foreign]
    arms = {run.arm for run in runs}
    count = Counter(run.machine for run in runs)
    return next((m for m, _ in count.most_common() if {run.arm for run in runs if run.machine == m} == arms), None)


def timing_note(study: Study) -> str:
    """A sentence on the seconds of runs of several machines; "" where there is one."""
    machines, used = sorted({run.machine for run in study.runs if run.machine and not run.foreign}), timed_on(study)
    if len(machines) < 2:
        return ""
    if used is None:
        return f" The arms were trained on different machines ({'; '.join(machines)}): their seconds do not compare."
    others = "; ".join(machine for machine in machines if machine != used)
    return (
        f" Seconds: of the {sum(run.machine == used for run in study.runs)} runs on {used}, not of those on {others}."
    )


def steps_alone(study: Study) -> dict[str, float]:
    """Arm to the seconds of a step where nothing else runs: benchmarks/step.csv beside the study's folder, of the same
    config, patch and batch; nothing where there is no such row."""
    seconds: dict[str, float] = {}
    for run in study.runs:
        training = run.config.get("training") or {}
        table = run.root / "benchmarks" / "step.csv" if run.root else None
        if run.arm in seconds or table is None or not table.is_file() or "patch" not in training:
            continue
        wanted = {"arm": run.arm, "config": run.config.get("name"), "batch": str(training.get("batch"))}
        wanted["size"] = "x".join(map(str, training["patch"]))
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row.get(key) == wanted[key] for key in wanted)]
        if rows:
            seconds[run.arm] = float(rows[-1]["seconds"])
    return seconds


def costs_table(study: Study) -> Table:
    """Costs by arm, each with its ratio to the first arm (dense where there is one)."""
    by_arm = costs(study)
    base = by_arm[study.arms[0]]
    known = {key for key in COSTS if any(math.isfinite(values[key]) for values in by_arm.values())}
    alone = ALONE in known
    shown = [key for key in COSTS if key in known or key not in (ALONE, PREDICTION)]
    rows = [
        (marked_side(study, arm), *(_cost(key, values[key], base[key]) for key in shown))
        for arm, values in by_arm.items()
    ]
    note = (
        f"In brackets: the ratio to {study.arms[0]}. Means over the runs of an arm. Multiply-adds: of a forward pass"
        " over a training patch, with the head at its training points; for prediction, with the head at the voxels that"
        " it refines. s per case: from the file to labels, without scoring."
    )
    if alone:
        note += (
            " Alone: the arms taking turns in one process, nothing else running (python scripts/benchmark.py step);"
            " the runs' own seconds may hold other load."
        )
    note += timing_note(study)
    return Table("Costs", ("arm", *(COSTS[key] for key in shown)), tuple(rows), note, first_number=1)


def _cost(key: str, value: float, base: float) -> str:
    if math.isnan(value):
        return "-"
    shown: Callable[[float], str] = {
        "parameters": lambda v: f"{v / 1e6:.2f} M",
        "multiply_adds": lambda v: f"{v / 1e9:.2f} G",
        PREDICTION: lambda v: f"{v / 1e9:.2f} G",
        "peak_memory_mib": lambda v: f"{v:.0f}",
        "peak_memory_prediction_mib": lambda v: f"{v:.0f}",
    }.get(key, lambda v: f"{v:.3f}")
    ratio = "" if math.isnan(base) or not base else f" ({value / base:.2f})"
    return shown(value) + ratio
