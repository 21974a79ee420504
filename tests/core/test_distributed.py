"""Several processes: the losses of one, one line a fault, any number of them continues, the same bits after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.fixtures import TINY
from tests.launcher import REPOSITORY, Ended, Launcher
from vnet.core.distributed import (
    RankInfo,
    available_cores,
    on_rank_zero,
    rank_info,
    require_equal_machines,
    shard,
    unshard,
)
from vnet.core.errors import InputError
from vnet.model.checkpoints import read_checkpoint

pytestmark = pytest.mark.distributed
RUN = Path("tiny/pointrend_s2/fold0_seed0")


class Runs:
    """A folder of runs of one config, six steps of batches of six, by any number of processes."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data, self.launcher = folder, data, Launcher()
        config = folder / "tiny.yaml"
        config.write_text(yaml.safe_dump(TINY))
        self.words = f"--config {config} --data.root {data} --data.cache {folder}/cache --arm pointrend_s2".split()
        self.words += "--training.batch 6 --threads 1".split()

    def start(self, world: int, command: str, *argv: object, **fault: Any) -> list[Ended]:
        return self.launcher.run(self.folder, world, command, *map(str, argv), fault=fault or None)

    def train(self, world: int, run_root: object, *argv: object, **fault: Any) -> list[Ended]:
        return self.start(world, "train", *self.words, "--run_root", run_root, *argv, **fault)

    def __getitem__(self, run_root: object) -> Path:
        """The run folder below a run_root; the runs of 1, 2 and 3 processes are made when they are first asked for."""
        folder = self.folder / str(run_root) / RUN
        if isinstance(run_root, int) and not folder.exists():
            ended = self.train(run_root, run_root)
            assert codes(ended) == [0] * run_root
            assert lines(ended) == []
            assert [bool(one.out) for one in ended] == [True] + [False] * (run_root - 1)  # one log, one progress bar
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("processes"), phantoms)
    yield made
    made.launcher.close()


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


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints/last.ckpt")["model"]


def require_near(run: Path, other: Path) -> None:
    """The same curves, but for sums in another order, which the choice of points and Adam magnify."""
    one, two = curves(run), curves(other)
    assert one.keys() == two.keys()
    for tag in one:
        assert [step for step, _ in one[tag]] == [step for step, _ in two[tag]], tag
        ours, theirs = ([value for _, value in found[tag]] for found in (one, two))
        # a share of the refined voxels moves by steps where these are few: a voxel changes its class or its bin
        apart = 2e-3 if "refinement/" in tag else 2e-4
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=apart, err_msg=tag)
    ours, theirs = ([found[tag][0][1] for tag in found if "loss" in tag] for found in (one, two))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # of the first step


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_have_the_losses_of_one(world: int, runs: Runs) -> None:
    require_near(runs[world], runs[1])
    for name, value in weights(runs[1]).items():
        torch.testing.assert_close(weights(runs[world])[name], value, rtol=0, atol=2e-3)
    assert json.loads((runs[world] / "run.json").read_text())["processes"] == world


@pytest.mark.slow
def test_a_process_may_have_no_case_to_score(runs: Runs) -> None:
    """Two cases, three processes; the tables are those that one process makes of the same checkpoint."""
    table = (runs[3] / "cases.csv").read_text()
    assert len({line.split(",")[3] for line in table.splitlines()[1:]}) == 2
    before = {name: (runs[3] / name).read_text() for name in ("cases.csv", "refinement.csv")}
    for name in before:
        (runs[3] / name).unlink()
    assert codes(runs.start(1, "evaluate", runs[3])) == [0]
    assert {name: (runs[3] / name).read_text() for name in before} == before


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_another_number_of_processes_continues(first: int, then: int, runs: Runs) -> None:
    where = f"{first}_then_{then}"
    # one process alone is told to stop: all stop, after the same step, with a checkpoint of it
    ended = runs.train(first, where, rank=first - 1, step=2, kind="terminate")
    assert codes(ended) == [75] * first
    assert lines(ended) == []
    assert read_checkpoint(runs[where] / "checkpoints/last.ckpt")["progress"]["step"] == 3
    assert codes(runs.train(then, where)) == [0] * then
    require_near(runs[where], runs[1])


@pytest.mark.slow
def test_killed_processes_end_with_the_same_bits(runs: Runs) -> None:
    world, where = 2, "killed"
    assert codes(runs.train(world, where, rank="all", step=5, kind="kill")) == [-9] * world
    assert read_checkpoint(runs[where] / "checkpoints/last.ckpt")["progress"]["step"] == 4
    assert codes(runs.train(world, where)) == [0] * world
    one, two = (read_checkpoint(runs[name] / "checkpoints/last.ckpt") for name in (world, where))
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    for state, other in zip(one["optimizer"]["state"].values(), two["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(state[name], other[name]) for name in state)
    for name in ("cases.csv", "refinement.csv"):
        assert (runs[where] / name).read_text() == (runs[world] / name).read_text()
    assert curves(runs[where]) == curves(runs[world])


@pytest.mark.slow
def test_ctrl_c_in_one_process_stops_all(runs: Runs) -> None:
    ended = runs.train(2, "interrupted", rank=0, step=1, kind="interrupt")
    assert codes(ended) == [130, 130]
    assert lines(ended) == []


def test_the_fault_of_one_process_ends_all_with_one_line(runs: Runs) -> None:
    ended = runs.train(2, "vanish", rank=1, step=1, kind="vanish")
    assert codes(ended) == [3, 3]
    assert lines(ended) == ["error: case phantom_001: its files vanished"]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_one_line(runs: Runs) -> None:
    ended = runs.train(3, "kill", rank=1, step=1, kind="kill")
    assert codes(ended) == [3, -9, 3]
    (line,) = lines(ended)
    assert "another process ended without a word" in line


@pytest.mark.slow
def test_a_mistake_of_the_program_keeps_its_traceback_once(runs: Runs) -> None:
    ended = runs.train(2, "stumble", rank=1, step=1, kind="stumble")
    assert [one.code for one in ended] == [1, 1]
    assert [one.err.count("Traceback") for one in ended] == [0, 1]


@pytest.mark.slow
def test_all_processes_drop_a_step_that_one_finds_bad(runs: Runs) -> None:
    short = ["--training.steps", "2", "--training.max_bad_steps"]
    assert codes(runs.train(2, "poison", *short, 1, rank=1, step=1, kind="poison")) == [0, 0]
    info = json.loads((runs["poison"] / "run.json").read_text())
    assert (info["steps"], info["dropped_steps"]) == (2, 1)
    assert all(value.isfinite().all() for value in weights(runs["poison"]).values())
    ended = runs.train(2, "strict", *short, 0, rank=1, step=1, kind="poison")
    assert codes(ended) == [3, 3]
    (line,) = lines(ended)
    assert "1 steps with a non-finite loss" in line
    assert line.count("phantom_") == 6  # the cases of the whole batch: who was bad may be another process's


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("train", "--training.batch 3", "training.batch must be a multiple of the 2 processes, which share it, got"),
        ("train", "--network.norm batch", "network.norm batch takes its statistics over the whole batch"),
        ("train", "--data.fol 1", "unknown key data.fol; did you mean data.fold?"),  # before they are joined
        ("train", "--data.root nowhere", "nowhere"),  # met by the first process
        ("experiment", "", "started as 2 processes, but it starts the runs itself"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_in_one_line(
    command: str, words: str, message: str, runs: Runs
) -> None:
    ended = runs.start(2, command, *runs.words, "--run_root", "refused", *words.split())
    assert codes(ended) == [2, 2]
    (line,) = lines(ended)
    assert message in line
    assert not (runs.folder / "refused/tiny").exists()


@pytest.mark.slow
def test_prediction_is_shared(runs: Runs, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(sorted((runs.data / "imagesTr").iterdir())[:4]):
        (images / file.name).write_bytes(b"torn" if number == 2 else file.read_bytes())
    where = ["--input", images, "--threads", "1", "--output"]
    for world in (1, 2):
        ended = runs.start(world, "predict", runs[1], *where, tmp_path / str(world))
        assert codes(ended) == [3] * world  # the three other cases are predicted
        assert len(lines(ended)) == 1  # of the torn file
    one, two = (sorted((tmp_path / world).iterdir()) for world in ("1", "2"))
    assert [file.name for file in one] == [file.name for file in two]
    labels = [file.name.endswith(".nii.gz") for file in one]
    assert sum(labels) == 3  # beside them tables of colours and volumes
    for ours, theirs in zip(compress(one, labels), compress(two, labels), strict=True):
        arrays = [np.asanyarray(nib.loadsave.load(file).dataobj) for file in (ours, theirs)]
        assert np.array_equal(*arrays), ours.name


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_launcher_says_which_process_this_is(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    assert rank_info() == RankInfo(0, 1, 0, 1)
    slurm = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": str(rank), "SLURM_NNODES": "2"}
    for name, value in (slurm | {"SLURM_LOCALID": str(rank % 2), "SLURM_JOB_NAME": "train"}).items():
        monkeypatch.setenv(name, value)
    assert rank_info() == RankInfo(0, 1, 0, 1)  # the batch script itself, no task of a step
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert rank_info() == RankInfo(rank, 4, rank % 2, 2)
    torchrun = {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}
    for name, value in (torchrun | {"TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, value)
    assert rank_info() == RankInfo(5, 6, 2, 3)  # torchrun inside a job step


def test_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert available_cores() == 7
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for world, share in ((3, 2), (7, 1), (9, 1)):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
        assert available_cores() == share
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")  # the task is bound to its own cores already
    assert available_cores() == 4


def test_processes_that_cannot_be_laid_out_are_refused() -> None:
    require_equal_machines(RankInfo(0, 6, 0, 3), 3)
    require_equal_machines(RankInfo(0, 6, 0, 3), None)
    with pytest.raises(InputError, match="3 processes on this machine, 5 in all; start as many on every machine"):
        require_equal_machines(RankInfo(0, 5, 0, 3), None)
    with pytest.raises(InputError, match="3 processes on this machine, and each sees 1 GPU; start one a GPU"):
        require_equal_machines(RankInfo(0, 3, 0, 3), 1)


def test_shares_come_back_in_order() -> None:
    for count in range(8):
        items = list(range(count))
        for world in (1, 2, 3, 5):
            assert unshard([items[rank::world] for rank in range(world)]) == items
    assert shard("abc") == ["a", "b", "c"]
    assert on_rank_zero(lambda: 3) == 3


@pytest.mark.slow
def test_torchrun_trains_is_stopped_and_one_process_continues(runs: Runs) -> None:
    """As a user types it: `torchrun --nproc_per_node 2 -m vnet train --config ...`."""
    words = "--training.steps 60 --training.checkpoint_every 1 --training.validate_every 0".split()
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    train = ["-m", "vnet", "train", *runs.words, "--run_root", "torchrun", *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*launch, *train], cwd=runs.folder, env=env, stdout=pipe, stderr=pipe)
    last = runs["torchrun"] / "checkpoints/last.ckpt"
    while process.poll() is None and not last.is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode != 0, err
    assert b"stopped; the same command continues where it stopped" in out
    assert 1 <= read_checkpoint(last)["progress"]["step"] < 60
    assert codes(runs.train(1, "torchrun", *words)) == [0]
    assert read_checkpoint(last)["progress"]["step"] == 60
