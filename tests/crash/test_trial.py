"""The fault test itself: a short form of it, and that it sees what differs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.crash.child import MOMENTS, NAMES, part_of
from tests.crash.kill_trainings import main
from tests.crash.trial import REPOSITORY, differences
from tests.fixtures import RUN
from vnet.core.errors import InputError
from vnet.model.checkpoints import read_checkpoint, save_checkpoint


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`python -m tests.crash.kill_trainings`, in short: one kill while a file is written, one at a random time."""
    assert main(["--kills", "2", "--steps", "6", "--threads", "1", "--output", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 resumed to identical bits"
    passed = {(moment, name) for moment, name, _ in json.loads((tmp_path / "kept/places.json").read_text())}
    assert {(MOMENTS[0], name) for name in NAMES} <= passed
    assert {(moment, "last.ckpt") for moment in MOMENTS} <= passed


def nudge_weight(run: Path) -> None:
    path = run / "checkpoints/last.ckpt"
    state = read_checkpoint(path)
    name = sorted(state["model"])[0]
    flat = state["model"][name].view(-1)
    flat[0] = torch.nextafter(flat[0], flat[0] + 1)
    save_checkpoint(path, state)


def nudge_moment(run: Path) -> None:
    path = run / "checkpoints/last.ckpt"
    state = read_checkpoint(path)
    state["optimizer"]["state"][0]["exp_avg"] += 1e-7
    save_checkpoint(path, state)


def drop_row(run: Path) -> None:
    text = (run / "cases.csv").read_text().splitlines(keepends=True)
    (run / "cases.csv").write_text("".join(text[:-1]))


def other_dice(run: Path) -> None:
    path = run / "metrics.csv"
    head, row = path.read_text().splitlines()
    path.write_text(f"{head}\n{row.replace('2,', '3,', 1)}\n")


def drop_events(run: Path) -> None:
    (file,) = run.glob("events.out.tfevents.*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])


def twice_the_events(run: Path) -> None:
    (file,) = run.glob("events.out.tfevents.*")
    shutil.copy(file, file.with_name(file.name + ".again"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (nudge_weight, "checkpoints/last.ckpt: model."),
        (nudge_moment, "checkpoints/last.ckpt: optimizer.state.0.exp_avg differs"),
        (drop_row, "cases.csv: other bytes"),
        (other_dice, "metrics.csv: other rows"),
        (drop_events, "event files: "),
        (twice_the_events, "event files: "),
    ],
)
def test_what_differs_is_named(change, line: str, world: Path) -> None:
    other = Path(shutil.copytree(RUN, world / "other"))
    assert differences(RUN, other) == []
    change(other)
    found = differences(RUN, other)
    assert found
    assert all(one.startswith(line) for one in found)


def test_seconds_may_differ(world: Path) -> None:
    other = Path(shutil.copytree(RUN, world / "other"))
    state = read_checkpoint(other / "checkpoints/last.ckpt")
    state["progress"]["seconds"] += 1
    save_checkpoint(other / "checkpoints/last.ckpt", state)
    assert differences(RUN, other) == []


def test_files_are_known_by_their_names_also_while_they_are_written() -> None:
    assert part_of("runs/x/.last.ckpt.123.part") == part_of(Path("last.ckpt")) == "last.ckpt"
    assert part_of(b"events.out.tfevents.1.host.2.0") == "event file"
    assert part_of(".0123_image.99.part") == part_of("0123_class_locations.npy") == "volume"
    assert part_of("thesis.txt") is part_of(3) is None


def test_a_child_dies_at_the_place_and_leaves_a_torn_file(tmp_path: Path) -> None:
    script = tmp_path / "writes.py"
    script.write_text(
        "for _ in range(2):\n    with open('metrics.csv', 'wb') as file:\n        file.write(b'12345678')\n"
    )
    words = [sys.executable, "-m", "tests.crash.child", MOMENTS[0], "metrics.csv", "2", str(script)]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "metrics.csv").read_bytes() == b"1234"


def test_the_folder_named_must_be_new(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there already; name a new folder"):
        main(["--kills", "1", "--output", str(tmp_path)])


def test_there_must_be_something_to_kill() -> None:
    with pytest.raises(InputError, match="--kills and --steps must be 1 or more and --seed 0 or more, got"):
        main(["--kills", "0"])
