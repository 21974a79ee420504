"""Whether two run folders hold the same bits, but for what a clock wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vnet.core.tables import read_table
from vnet.model.checkpoints import read_checkpoint

# keys of a checkpoint that hold what a clock or the memory says
CLOCK_KEYS = ("progress.seconds", "progress.step_seconds", "progress.wait_seconds", "progress.peak_memory_mib")
Curves = dict[str, list[tuple[int, Any]]]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, a line each; [] where all bits agree.

    Compared: both checkpoints (weights, optimiser, progress but for seconds), cases.csv, refinement.csv, metrics.csv
    without columns `seconds_*` and `*_mib`, and every curve, picture and text in the event files as (tag, step, value);
    of curves of speed the steps.
    """
    found = [f"checkpoints/{name}.ckpt: {line}" for name in ("last", "best") for line in checkpoints(one, other, name)]
    for name in ("cases.csv", "refinement.csv"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(f"{name}: other bytes")
    if untimed(one / "metrics.csv") != untimed(other / "metrics.csv"):
        found.append("metrics.csv: other rows")
    return found + [f"event files: {line}" for line in curves_differ(curves(one), curves(other))]


def checkpoints(one: Path, other: Path, name: str) -> Iterator[str]:
    """Keys of a checkpoint whose values differ."""
    states = [flat(read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")) for folder in (one, other)]
    for key in sorted(states[0].keys() | states[1].keys()):
        values = [state.get(key) for state in states]
        if key not in CLOCK_KEYS and not equal(*values):
            yield f"{key} differs"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted keys; `progress.step_seconds` and its like stay whole."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
    elif isinstance(value, (list, tuple)) and prefix not in CLOCK_KEYS:
        pairs = list(enumerate(value))
    else:
        return {prefix: value}
    return {k: v for key, below in pairs for k, v in flat(below, f"{prefix}.{key}" if prefix else str(key)).items()}


def equal(one: Any, other: Any) -> bool:
    """Bit for bit: a NaN equals itself, 0 does not equal -0."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    return type(one) is type(other) and repr(one) == repr(other)


def untimed(path: Path) -> list[dict[str, str]]:
    """Rows of a table without what a clock or the memory wrote."""
    return [
        {key: value for key, value in row.items() if not key.startswith("seconds_") and not key.endswith("_mib")}
        for row in read_table(path)
    ]


def curves(folder: Path) -> Curves:
    """All that TensorBoard shows of a run: tag to (step, value) in order; curves of speed without values.

    A writer that resumes says from which step on earlier points no longer count. TensorBoard's default reader heeds
    that for every kind of value, its readers in Python for some alone: hence the files are read here.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    found: Curves = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for raw in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(raw)
            if event.session_log.status == SessionLog.START:
                found = {tag: [p for p in points if p[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                value.ClearField("metadata")
                shown = None if "speed" in value.tag else value.SerializeToString()
                if "about/environment" not in value.tag:  # it names the commit, which may have moved on
                    found.setdefault(value.tag, []).append((event.step, shown))
    return {tag: points for tag, points in found.items() if points}


def curves_differ(one: Curves, other: Curves) -> Iterator[str]:
    for tag in sorted(one.keys() | other.keys()):
        points = [found.get(tag, []) for found in (one, other)]
        steps = [[step for step, _ in line] for line in points]
        if steps[0] != steps[1]:
            yield f"{tag} has steps {shorten(steps[0])} and {shorten(steps[1])}"
        elif points[0] != points[1]:
            step = next(a[0] for a, b in zip(*points, strict=True) if a != b)
            yield f"{tag} differs at step {step}"


def shorten(steps: list[int]) -> str:
    return str(steps) if len(steps) < 12 else f"{str(steps[:5])[:-1]}, ... {steps[-1]}] ({len(steps)})"
