"""What a reviewer asks of the runs: what each arm is, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from vnet.core.config import ARMS, flatten, merge
from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.tables import Table

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
    if points.get("num_points"):
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
    return " + ".join(["Dice + cross-entropy of the network's logits", *points])


def _augmentation(run: RunRecord, study: Study) -> str:
    if not run.config.get("training"):
        return ""
    mirrored = _key(run, "training.mirror")
    return f"{AUGMENTATION}; " + (f"mirrored along {', '.join(mirrored)}" if mirrored else "not mirrored")


def _tree(run: RunRecord, study: Study) -> str:
    commit = str(run.info.get("commit") or "")
    return f"{commit.rstrip('+')} with changes" if commit.endswith("+") else commit


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
