"""Several processes: the losses of one, one line a fault, any number of them continues, the same bits after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.vnet.launcher import REPOSITORY, Ended, Launcher
from vnet.checkpoints import read_checkpoint
from vnet.errors import InputError
from vnet.processes import Place, cores, interleave, on_first, place, require_equal_machines, share_of

RUN = Path("tiny/pointrend_s2/fold0_seed0")


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    one = Launcher()
    yield one
    one.close()


@pytest.fixture
def words(tiny: list[str], tmp_path: Path) -> list[str]:
    """A command line that trains for six steps on batches of six."""
    return [*tiny, "--arm", "pointrend_s2", "--training.batch", "6", "--data.cache", str(tmp_path / "cache")]


def codes(ended: list[Ended]) -> list[int]:
    assert not any("Traceback" in one.err for one in ended), [one.err for one in ended]
    return [one.code for one in ended]


def lines(ended: list[Ended]) -> list[str]:
    """What all processes together said on stderr."""
    return [line for one in ended for line in one.err.splitlines()]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if "speed" not in tag
    }


def weights(run_root: str) -> dict[str, torch.Tensor]:
    return read_checkpoint(run_root / RUN / "checkpoints/last.ckpt")["model"]


def test_two_and_three_processes_have_the_losses_of_one(words: list[str], launcher: Launcher) -> None:
    for world in (1, 2, 3):
        ended = launcher.run(world, "train.py", *words, "--run_root", str(world))
        assert codes(ended) == [0] * world
        assert lines(ended) == []
        assert [bool(one.out) for one in ended] == [True] + [False] * (world - 1)  # one log, one progress bar
    alone = curves("1" / RUN)
    for world in ("2", "3"):
        shared = curves(world / RUN)
        assert shared.keys() == alone.keys()
        for tag, curve in alone.items():
            assert [step for step, _ in shared[tag]] == [step for step, _ in curve], tag
            # sums in another order, magnified by the choice of points and by Adam
            values = [value for _, value in shared[tag]]
            np.testing.assert_allclose(values, [value for _, value in curve], rtol=2e-3, atol=2e-4, err_msg=tag)
        first = [shared[tag][0][1] / alone[tag][0][1] for tag in alone if "loss" in tag]
        np.testing.assert_allclose(first, 1, rtol=1e-6)
        assert json.loads((world / RUN / "run.json").read_text())["processes"] == int(world)
    # two cases to validate on: the third process has none; scored again by one process the tables are the same
    for name in ("cases.csv", "refinement.csv"):
        before = ("3" / RUN / name).read_text()
        ("3" / RUN / name).unlink()
        if name == "refinement.csv":
            assert codes(launcher.run(1, "evaluate.py", str("3" / RUN))) == [0]
            assert ("3" / RUN / name).read_text() == before
    assert len({line.split(",")[3] for line in ("3" / RUN / "cases.csv").read_text().splitlines()[1:]}) == 2


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_another_number_of_processes_continues(first: int, then: int, words: list[str], launcher: Launcher) -> None:
    assert codes(launcher.run(1, "train.py", *words, "--run_root", "straight")) == [0]
    # one process alone is told to stop: all stop, after the same step, with a checkpoint of it
    fault = {"rank": first - 1, "step": 2, "kind": "terminate"}
    ended = launcher.run(first, "train.py", *words, "--run_root", "moved", fault=fault)
    assert codes(ended) == [75] * first
    assert lines(ended) == []
    assert read_checkpoint("moved" / RUN / "checkpoints/last.ckpt")["progress"]["step"] == 3
    assert codes(launcher.run(then, "train.py", *words, "--run_root", "moved")) == [0]
    straight, moved = curves("straight" / RUN), curves("moved" / RUN)
    for tag, curve in straight.items():
        assert [step for step, _ in moved[tag]] == [step for step, _ in curve], tag
        values = [value for _, value in moved[tag]]
        np.testing.assert_allclose(values, [value for _, value in curve], rtol=2e-3, atol=2e-4, err_msg=tag)
    for name, value in weights("straight").items():
        torch.testing.assert_close(weights("moved")[name], value, rtol=0, atol=2e-3)


@pytest.mark.parametrize("world", [2, 3])
def test_killed_processes_end_with_the_same_bits(world: int, words: list[str], launcher: Launcher) -> None:
    assert codes(launcher.run(world, "train.py", *words, "--run_root", "straight")) == [0] * world
    fault = {"rank": "all", "step": 5, "kind": "kill"}
    assert codes(launcher.run(world, "train.py", *words, "--run_root", "killed", fault=fault)) == [-9] * world
    fault = {"rank": 0, "step": 5, "kind": "interrupt"}
    assert codes(launcher.run(world, "train.py", *words, "--run_root", "killed", fault=fault)) == [130] * world
    assert codes(launcher.run(world, "train.py", *words, "--run_root", "killed")) == [0] * world
    one, two = weights("straight"), weights("killed")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("cases.csv", "refinement.csv"):
        assert ("straight" / RUN / name).read_text() == ("killed" / RUN / name).read_text()
    assert curves("straight" / RUN) == curves("killed" / RUN)


def test_one_process_alone_ends_all_with_one_line(words: list[str], launcher: Launcher) -> None:
    def befall(kind: str) -> list[Ended]:
        fault = {"rank": 1, "step": 2, "kind": kind}
        return launcher.run(3, "train.py", *words, "--run_root", kind, fault=fault)

    ended = befall("vanish")
    assert codes(ended) == [3, 3, 3]
    assert lines(ended) == ["error: case phantom_001: its files vanished"]
    ended = befall("kill")
    assert codes(ended) == [3, -9, 3]
    (line,) = lines(ended)
    assert "another process ended without a word" in line
    ended = befall("stumble")  # a mistake of the program keeps its traceback, once
    assert [one.code for one in ended] == [3, 1, 3]
    assert [one.err.count("Traceback") for one in ended] == [0, 1, 0]


def test_all_processes_drop_a_step_that_one_finds_bad(words: list[str], launcher: Launcher) -> None:
    fault = {"rank": 1, "step": 3, "kind": "poison"}
    assert codes(launcher.run(2, "train.py", *words, fault=fault)) == [0, 0]
    info = json.loads(("runs" / RUN / "run.json").read_text())
    assert (info["steps"], info["dropped_steps"]) == (6, 1)
    assert all(value.isfinite().all() for value in weights("runs").values())
    limit = ["--training.max_bad_steps", "0", "--run_root", "strict"]
    ended = launcher.run(2, "train.py", *words, *limit, fault=fault)
    assert codes(ended) == [3, 3]
    (line,) = lines(ended)
    assert "1 steps with a non-finite loss" in line
    assert line.count("phantom_") == 6  # the cases of the whole batch: who was bad may be another process's


def test_what_cannot_be_divided_is_refused_in_one_line(words: list[str], launcher: Launcher) -> None:
    ended = launcher.run(2, "train.py", *words, "--training.batch", "3")
    assert codes(ended) == [2, 2]
    assert [line.split(";")[0] for line in lines(ended)] == [
        "error: training.batch must be a multiple of the 2 processes, which share it, got 3"
    ]
    ended = launcher.run(2, "train.py", *words, "--network.norm", "batch")
    assert codes(ended) == [2, 2]
    (line,) = lines(ended)
    assert "network.norm batch takes its statistics over the whole batch" in line
    ended = launcher.run(2, "train.py", *words, "--data.fol", "1")  # before the processes know each other
    assert codes(ended) == [2, 2]
    assert lines(ended) == ["error: command line: unknown key data.fol; did you mean data.fold?"]
    ended = launcher.run(2, "train.py", *words, "--data.root", "nowhere")  # met by the first process
    assert codes(ended) == [2, 2]
    (line,) = lines(ended)
    assert "nowhere" in line
    ended = launcher.run(2, "experiment.py", *words)
    assert codes(ended) == [2, 2]
    (line,) = lines(ended)
    assert "started as 2 processes, but it starts the runs itself" in line
    assert not Path("runs").exists()


def test_prediction_is_shared(words: list[str], phantoms: Path, launcher: Launcher, tmp_path: Path) -> None:
    assert codes(launcher.run(1, "train.py", *words)) == [0]
    images = phantoms / "imagesTr"
    for world in (1, 2):
        ended = launcher.run(
            world, "predict.py", str("runs" / RUN), "--input", str(images), "--output", f"{world}", "--threads", "1"
        )
        assert codes(ended) == [0] * world
        assert "wrote 6 label files" in ended[0].out
    for file in sorted(Path("1").iterdir()):
        ours, theirs = (nib.loadsave.load(Path(folder, file.name)) for folder in ("1", "2"))
        assert np.array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj)), file.name
    bad = tmp_path / "bad"
    bad.mkdir()
    for number, file in enumerate(sorted(images.iterdir())[:3]):
        (bad / file.name).write_bytes(b"torn" if number == 1 else file.read_bytes())
    ended = launcher.run(2, "predict.py", str("runs" / RUN), "--input", str(bad), "--output", "3", "--threads", "1")
    assert codes(ended) == [2, 2]
    (line,) = lines(ended)
    assert sorted(file.name for file in Path("3").iterdir()) == sorted(
        file.name for file in bad.iterdir() if file.read_bytes() != b"torn"
    )


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_launcher_says_which_process_this_is(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    assert place() == Place(0, 1, 0, 1)
    slurm = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": str(rank), "SLURM_NNODES": "2"}
    for name, value in (slurm | {"SLURM_LOCALID": str(rank % 2), "SLURM_JOB_NAME": "train"}).items():
        monkeypatch.setenv(name, value)
    assert place() == Place(0, 1, 0, 1)  # the batch script itself, no task of a step
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert place() == Place(rank, 4, rank % 2, 2)
    torchrun = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}
    for name, value in (torchrun | {"TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, value)
    assert place() == Place(5, 6, 2, 3)  # torchrun inside a job step


def test_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert cores() == 7
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for world, share in ((3, 2), (7, 1), (9, 1)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
        assert cores() == share
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")  # the task is bound to its own cores already
    assert cores() == 4


def test_processes_that_cannot_be_laid_out_are_refused() -> None:
    require_equal_machines(Place(0, 6, 0, 3), 3)
    require_equal_machines(Place(0, 6, 0, 3), None)
    with pytest.raises(InputError, match="3 processes on this machine, 5 in all; start as many on every machine"):
        require_equal_machines(Place(0, 5, 0, 3), None)
    with pytest.raises(InputError, match="3 processes on this machine, and each sees 1 GPU; start one a GPU"):
        require_equal_machines(Place(0, 3, 0, 3), 1)


def test_shares_come_back_in_order() -> None:
    for count in range(8):
        items = list(range(count))
        for world in (1, 2, 3, 5):
            assert interleave([items[rank::world] for rank in range(world)]) == items
    assert share_of("abc") == ["a", "b", "c"]
    assert on_first(lambda: 3) == 3


def test_torchrun_trains_is_killed_and_one_process_continues(words: list[str], tmp_path: Path) -> None:
    """As a user types it: `torchrun --nproc_per_node 2 scripts/train.py --config ...`."""
    steps = ["--training.steps", "400", "--training.checkpoint_every", "1", "--training.validate_every", "0"]
    train = [str(REPOSITORY / "scripts/train.py"), *words, *steps]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *train]
    process = subprocess.Popen(torchrun, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = "runs" / RUN / "checkpoints/last.ckpt"
    while process.poll() is None and not last.is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode != 0
    assert "stopped; a checkpoint is written, the same command continues" in out
    step = read_checkpoint(last)["progress"]["step"]
    assert 1 <= step < 400
    steps[1] = str(step + 1)
