"""Kill a small training, run the same command again, compare with the undisturbed run bit for bit; as often as asked.

`child` is a training that kills itself while it writes, `kill_trainings` the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.crash.child import Place
from vnet.core.errors import RunFault
from vnet.core.files import read_table
from vnet.core.progress import ProgressBar
from vnet.data.phantoms import PhantomKind, write_phantoms
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


REPOSITORY = Path(__file__).resolve().parents[2]
TWICE_EVERY = 3  # of so many runs one is killed again while it continues
SMALL: dict[str, dict[str, Any]] = {
    "data": {"root": "../data"},
    "network": {
        "width": 4,
        "kernel": 3,
        "norm": "batch",
        "down": [1, 1, 1],
        "up": [1, 1],
        "strides": [[2, 2, 2]] * 2,
        "dropout": 0.1,
    },
    "points": {"num_points": 128},
    "training": {"batch": 2, "patch": [16, 24, 32], "validate_every": 6, "checkpoint_every": 4},
}


@dataclass(frozen=True)
class Moment:
    """When to kill: at a place while it is passed for the `count`th time, or `seconds` after the start."""

    seconds: float = 0.0
    place: Place | None = None
    count: int = 0

    def __str__(self) -> str:
        if self.place is None:
            return f"after {self.seconds:.2f} s"
        return f"{self.place[1]}, {self.place[0]}, time {self.count}"


class Bench:
    """A small data set and config in a folder, and the undisturbed run that others are compared with.

    Args:
        folder: empty or new.
        script: train.py.
        words: its command line beside the config.
        steps: of the training.
    """

    def __init__(self, folder: Path, script: Path, words: list[str], steps: int) -> None:
        self.folder, self.script = folder, script
        write_phantoms(folder / "data", 6, seed=3, kind=PhantomKind(size=(20, 24, 28)))
        config = SMALL | {"training": SMALL["training"] | {"steps": steps}}
        (folder / "small.yaml").write_text(yaml.safe_dump(config))
        self.words = ["--config", "../small.yaml", *words]
        log = folder / "places.json"
        self.plain, started = self.place_of("undisturbed"), time.monotonic()
        process = self.start(self.plain, [sys.executable, "-m", "tests.crash.child", "record", str(log)])
        while process.poll() is None and not (self.plain / "runs").exists():
            time.sleep(0.01)
        self.first_file = time.monotonic() - started
        self.finish(process, self.plain)
        self.seconds = time.monotonic() - started
        self.places: dict[Place, int] = {(m, name): count for m, name, count in json.loads(log.read_text())}

    def place_of(self, name: str) -> Path:
        """The working folder of a run: the command is the same in each, only the folder differs."""
        place = self.folder / name
        place.mkdir(parents=True)
        return place

    def draw(self, rng: np.random.Generator, *, by_time: bool) -> Moment:
        """A moment: any time from the first file on, or any place; rare places are as likely as frequent ones."""
        if by_time:
            begin = 0.9 * self.first_file
            return Moment(seconds=begin + float(rng.random()) * (self.seconds - begin))
        place = sorted(self.places)[int(rng.integers(len(self.places)))]
        return Moment(place=place, count=1 + int(rng.integers(self.places[place])))

    def start(self, place: Path, wrapper: list[str]) -> subprocess.Popen[bytes]:
        """The training command in a working folder, as a user would type it or in the wrapper."""
        with (place / "out.txt").open("ab") as out, (place / "err.txt").open("wb") as err:
            command = [*(wrapper or [sys.executable]), str(self.script), *self.words]
            # the wrapper is a module of this repository, the working folder another one
            env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
            return subprocess.Popen(command, cwd=place, env=env, stdout=out, stderr=err, start_new_session=True)

    def finish(self, process: subprocess.Popen[bytes], place: Path) -> None:
        """Wait for the end of a run that nothing disturbs.

        Raises:
            RunFault: it failed.
        """
        with ended(process):
            code = process.wait()
        if code:
            said = (place / "err.txt").read_text().strip().splitlines() or [f"exit code {code}"]
            raise RunFault(f"{place.name}: the training fails by itself: {said[-1]}")

    def kill(self, place: Path, moment: Moment) -> bool:
        """Run until the moment; False where the run ended before it came."""
        wrapper = []
        if moment.place is not None:
            wrapper = [sys.executable, "-m", "tests.crash.child", *moment.place, str(moment.count)]
        started = time.monotonic()
        process = self.start(place, wrapper)
        with ended(process):
            try:
                code = process.wait(None if moment.place else moment.seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code not in (0, -signal.SIGKILL):
            said = (place / "err.txt").read_text().strip().splitlines() or [f"exit code {code}"]
            raise RunFault(f"{place.name}, to be killed ({moment}), ended by itself: {said[-1]}")
        if code == 0:  # the machine is faster than it was: later moments are drawn for that
            self.seconds = min(self.seconds, time.monotonic() - started)
            self.first_file = min(self.first_file, self.seconds / 2)
        return code != 0


class ended:
    """The process does not outlive the block, whatever ends it (Ctrl-C, a fault)."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run_trials(kills: int, folder: Path, script: Path, *, arm: str, seed: int, threads: int, steps: int) -> list[str]:
    """Kill and resume until there were `kills` kills; every other one at a dangerous place, the rest at random times.

    Args:
        kills: how many; a run is killed once, every third one again while it continues.
        folder: work is done there.
        script: train.py.
        seed: of the moments.

    Returns:
        What differed, a line each.

    Raises:
        RunFault: the training fails by itself.
    """
    rng = np.random.default_rng(seed)
    faults: list[str] = []
    kinds: Counter[str] = Counter()
    with ProgressBar("kills", kills) as bar:
        bar.say(f"the undisturbed run: {arm}, {steps} steps")
        bench = Bench(folder, script, ["--arm", arm, "--threads", str(threads)], steps)
        reference = run_folder(bench.plain, arm)
        bar.say(f"it took {bench.seconds:.1f} s and passed {len(bench.places)} kinds of dangerous places")
        done = number = 0
        while done < kills:
            number += 1
            place = bench.place_of(f"run_{number:02d}")
            wanted = min(kills - done, 2 if number % TWICE_EVERY == 0 else 1)
            told = []
            for again in range(wanted):
                moment = bench.draw(rng, by_time=(done + again) % 2 == 1)
                if bench.kill(place, moment):
                    told.append(str(moment))
                    kinds["time" if moment.place is None else "place"] += 1
            if not told:
                continue  # it ended before the moment came: another run is killed in its stead
            bench.finish(bench.start(place, []), place)
            found = differences(reference, run_folder(place, arm))
            faults += [f"{place.name}, killed {' and then '.join(told)}: {line}" for line in found]
            done += len(told)
            bar.say(f"{place.name} killed: {' | '.join(told)}: {'DIFFERS' if found else 'identical bits'}")
            bar.advance(done=done)
        bar.say(f"{kinds['place']} kills while a file was written, {kinds['time']} at random times")
    return faults


def run_folder(place: Path, arm: str) -> Path:
    return place / "runs" / "small" / arm / "fold0_seed0"
