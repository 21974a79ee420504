"""What the machine does to a training: a full disk, a read-only folder, files that vanish, signals. Each ends in one
line and an exit code, the last checkpoint is whole, and the same command ends with the undisturbed run's bits.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.trial import differences
from tests.fixtures import run_vnet
from vnet.data.batches import TrainingBatches
from vnet.model.checkpoints import read_checkpoint
from vnet.training.trainer import Trainer

WORDS = "--config tiny.yaml --data.root data --arm pointrend_s2 --name long --training.steps 8".split()
WORDS += ["--training.validate_every", "4"]
RUN = Path("runs/long/pointrend_s2/fold0_seed0")
FAULT_STEP = 3  # strikes after this step; batches made before may still be used

Deed = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="session")
def straight(template: Path) -> Path:
    """The undisturbed run's folder."""
    from vnet.core.config import load_config
    from vnet.training.run import train_run

    before = Path.cwd()
    os.chdir(template)
    try:
        return template / train_run(load_config(WORDS)).folder
    finally:
        os.chdir(before)


@pytest.fixture
def fresh(straight: Path, world: Path) -> Path:
    """A working folder in which the run has not begun."""
    shutil.rmtree("runs/long", ignore_errors=True)
    return world


@pytest.fixture(autouse=True)
def file_sizes() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def limit_files(patch: pytest.MonkeyPatch) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def refuse_with(number: int) -> Deed:
    """From now on the system refuses to put a file into its place."""

    def replace(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    return lambda patch: patch.setattr(os, "replace", replace)


def each_case(deed: Callable[[Path], None]) -> Deed:
    return lambda patch: [deed(path) for path in sorted(Path("data/imagesTr").iterdir())] and None


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(4))


def signalled(number: int) -> Deed:
    return lambda patch: os.kill(os.getpid(), number)


def out_of_memory(patch: pytest.MonkeyPatch) -> None:
    def batch(self: TrainingBatches, step: int) -> None:
        raise MemoryError

    patch.setattr(TrainingBatches, "batch", batch)


def train(capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    return run_vnet("train", WORDS, capsys)


def strike(deed: Deed, patch: pytest.MonkeyPatch) -> None:
    """The deed is done after `FAULT_STEP` steps; volumes are read from their files each time."""
    plain = Trainer.step

    def step(self: Trainer, *rest: object) -> object:
        terms = plain(self, *rest)  # type: ignore[arg-type]
        if self.progress.step == FAULT_STEP:
            deed(patch)
        return terms

    patch.setattr(Trainer, "step", step)
    patch.setattr("vnet.data.store.memory_limit_bytes", lambda: 0)


FAULTS: dict[str, tuple[Deed, int, str]] = {
    "file_size_limit": (limit_files, 2, rf"error: {RUN}.*: the file size limit is reached; raise it \(ulimit -f\) .*"),
    "full_disk": (refuse_with(errno.ENOSPC), 2, rf"error: {RUN}/checkpoints/.*: the disk is full; free some space .*"),
    "quota": (refuse_with(errno.EDQUOT), 2, rf"error: {RUN}/checkpoints/.*: the disk quota is used up; .*"),
    "read_only": (refuse_with(errno.EROFS), 2, rf"error: {RUN}/checkpoints/.*: the file system is read-only; .*"),
    "no_permission": (refuse_with(errno.EPERM), 2, rf"error: {RUN}/checkpoints/.*: the system does not permit it; .*"),
    "broken_disk": (refuse_with(errno.EIO), 2, rf"error: {RUN}/checkpoints/.*: Input/output error; look at it .*"),
    "files_vanish": (each_case(Path.unlink), 3, r"error: case \w: data/imagesTr/\w.nii.gz vanished; restore it .*"),
    "files_change": (each_case(change), 3, r"error: case \w: its files changed during the run; restore them .*"),
    "out_of_memory": (out_of_memory, 3, r"error: out of memory; lower training.batch, .*"),
    "terminated": (signalled(signal.SIGTERM), 75, ""),
    "slurm": (signalled(signal.SIGUSR1), 75, ""),
    "interrupted": (signalled(signal.SIGINT), 130, ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_while_running_is_one_line_and_costs_nothing(
    name: str, fresh: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deed, wanted, line = FAULTS[name]
    shutil.copytree("data", "kept")
    with pytest.MonkeyPatch.context() as patch:
        strike(deed, patch)
        code, out, err = train(capsys)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert code == wanted, err
    assert re.fullmatch(line, err.rstrip("\n")), err
    assert "Traceback" not in out + err
    step = read_checkpoint(RUN / "checkpoints/last.ckpt")["progress"]["step"]
    assert FAULT_STEP - 1 <= step < 8
    assert not list(RUN.rglob(".*.part"))
    shutil.rmtree("data")
    shutil.copytree("kept", "data")
    code, _, err = train(capsys)
    assert (code, err) == (0, "")
    assert differences(straight, RUN) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("place", ["vnet.training.run.prepare_data", "vnet.training.trainer.Trainer.evaluate"])
def test_signals_outside_the_loop_end_with_75_too(
    place: str, number: int, fresh: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, lambda *_: os.kill(os.getpid(), number))
        code, out, err = train(capsys)
    assert (code, err) == (75, "")
    assert out.splitlines()[-1] == f"stopped; the same command continues where it stopped: {RUN}"
    assert not (RUN / "cases.csv").exists()
    assert train(capsys)[0] == 0
    assert differences(straight, RUN) == []


def test_files_that_change_before_the_end_are_noticed(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Trainer.evaluate

    def late(self: Trainer) -> object:
        for path in Path("data/labelsTr").iterdir():
            change(path)
        return plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "evaluate", late)
        code, _, err = train(capsys)
    assert code == 3
    assert re.fullmatch(r"error: case \w: its files changed during the run; restore them and continue\n", err)
    assert not (RUN / "cases.csv").exists()


def test_a_run_killed_while_it_wrote_its_first_file_begins_again(
    fresh: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RUN.mkdir(parents=True)
    (RUN / ".run.json.4711.part").write_text('{"config_h')
    assert train(capsys)[0] == 0
    assert differences(straight, RUN) == []
    assert not list(RUN.rglob(".*.part"))


def test_curves_are_on_disk_before_the_checkpoint_that_holds_them(
    fresh: Path, straight: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies right after a checkpoint: what the writer still held back would be missing for ever."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriter

    held: list[bytes] = []
    plain_write, plain_flush = _AsyncWriter.write, _AsyncWriter.flush

    def flush(self: _AsyncWriter) -> None:
        for data in held:
            plain_write(self, data)
        held.clear()
        plain_flush(self)

    class Killed(BaseException):
        pass

    def die(self: Trainer, path: Path, save: Callable[[Trainer, Path], None] = Trainer.save) -> None:
        save(self, path)
        if self.progress.step == FAULT_STEP:
            held.clear()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_AsyncWriter, "write", lambda self, data: held.append(data))
        patch.setattr(_AsyncWriter, "flush", flush)
        patch.setattr(Trainer, "save", die)
        with pytest.raises(Killed):
            train(capsys)
    assert train(capsys)[0] == 0
    assert differences(straight, RUN) == []
