"""Every refusal of bad input in one line; faults of the system: full disks, signals, links."""

from __future__ import annotations

import csv
import errno
import html
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.crash.trial import differences
from tests.errors.refusals import GROUPS, IMAGE, LABEL, PAGE, Bomb, Refusal, page, poison
from tests.fixtures import RUN, SIZE, describe, read_volume, run_vnet, set_header, tree, write_volume
from vnet.core.config import load_config
from vnet.core.errors import InputError
from vnet.data.batches import TrainingBatches
from vnet.model.checkpoints import read_checkpoint
from vnet.training.trainer import Trainer

RULES = [
    pytest.param(rule, id=rule.what.replace(" ", "_"), marks=[getattr(pytest.mark, rule.needs)] if rule.needs else [])
    for rules in GROUPS.values()
    for rule in rules
]
# what a command may leave though it refuses: the check of its data, kept to save time; labels of sound images
LEFT = ("runs/cache/", "out/")


def pattern(message: str) -> str:
    return ".*".join(re.escape(part) for part in message.split("..."))


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_refuses_in_one_line(rule: Refusal, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule.plant()
    before = tree(world)
    _, command, *words = shlex.split(rule.command)
    code, out, err = run_vnet(command, words, capsys)
    lines = err.splitlines()
    assert re.fullmatch("error: " + pattern(rule.message), lines[0]), err
    assert len(lines) == 1, err
    assert code == rule.code
    assert "Traceback" not in out + err
    after = tree(world)
    assert {name: after.get(name) for name in before} == before
    assert [name for name in after.keys() - before.keys() if not name.startswith(LEFT)] == []


def test_the_table_in_the_docs_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.errors.refusals"


def test_every_rule_is_listed_once() -> None:
    whats = [rule.what for rules in GROUPS.values() for rule in rules]
    assert len(whats) == len(set(whats)) >= 60


TRAIN_ODD = "--config tiny.yaml --data.root data --name odd --training.validate_every 1".split()
ODD_RUN = Path("runs/odd/pointrend_s2/fold0_seed0")


def volumes(change: Callable[[np.ndarray], np.ndarray], folder: str = "imagesTr", names: str = "abcde") -> None:
    for name in names:
        path = Path(f"data/{folder}/{name}.nii.gz")
        write_volume(path, change(read_volume(str(path))))


def constant() -> None:
    volumes(lambda array: np.full_like(array, 7), names="ab")


def all_constant() -> None:
    volumes(lambda array: np.full_like(array, 7))


def one_slice() -> None:
    for folder in ("imagesTr", "labelsTr"):
        volumes(lambda array: array[:, :, 5:6], folder, "abc")


def empty_labels() -> None:
    volumes(np.zeros_like, "labelsTr", "abc")


def absent_class() -> None:
    """No validation case of the fold holds `far`, and only one training case does."""
    Path("data/splits.json").write_text(json.dumps({"folds": [{"train": ["a", "b", "c"], "val": ["d", "e"]}]}))
    volumes(lambda array: np.where(array == 2, 0, array).astype(np.uint8), "labelsTr", "bcde")


def larger_than_the_patch() -> None:
    for folder in ("imagesTr", "labelsTr"):
        volumes(lambda array: np.tile(array, (3, 2, 1)), folder, "ab")


def a_voxel() -> None:
    for folder in ("imagesTr", "labelsTr"):
        volumes(lambda array: array[4:5, 4:5, 4:5], folder, "ab")


def huge() -> None:
    volumes(lambda array: array * np.float32(1e33))


def minute() -> None:
    volumes(lambda array: array * np.float32(1e-35))


def one_huge_voxel() -> None:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[0, 0, 0] = 3e38
        return array

    volumes(change)


def hounsfield() -> None:
    describe(modality={"0": "CT"})
    volumes(lambda array: (array - 1000).astype(np.int16))


def constant_hounsfield() -> None:
    describe(modality={"0": "CT"})
    all_constant()


def negative_spacing() -> None:
    """As files stored LPS have it: axes that run the other way."""
    for folder in ("imagesTr", "labelsTr"):
        for name in "ab":
            path = f"data/{folder}/{name}.nii.gz"
            set_header(path, srow_x=[-1, 0, 0, 0], srow_y=[0, -2, 0, 0])


ODD = [constant, all_constant, one_slice, empty_labels, absent_class, larger_than_the_patch, a_voxel, huge, minute]
ODD += [one_huge_voxel, hounsfield, constant_hounsfield, negative_spacing]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.__name__)
def test_odd_volumes_are_trained_on_and_scored(odd, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd()
    code, _, err = run_vnet("train", [*TRAIN_ODD, "--arm", "pointrend_s2"], capsys)
    assert (code, err) == (0, "")
    state = read_checkpoint(ODD_RUN / "checkpoints/last.ckpt")
    assert state["progress"]["bad_steps"] == 0
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    with (ODD_RUN / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["structure"] for row in rows} == {"near", "far"}
    scores = [float(row["dice"]) for row in rows if row["dice"]]
    assert all(0 <= score <= 1 for score in scores)
    assert all(math.isfinite(float(row["hd95_mm"])) for row in rows if row["hd95_mm"])


def test_a_class_absent_from_the_fold_is_blank_and_not_1(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blank where neither truth nor prediction has it, 0 where it is hallucinated."""
    absent_class()
    assert run_vnet("train", [*TRAIN_ODD, "--arm", "pointrend_s2"], capsys)[0] == 0
    with (ODD_RUN / "cases.csv").open() as file:
        far = [row for row in csv.DictReader(file) if row["structure"] == "far"]
    assert far
    assert {row["dice"] for row in far} <= {"", "0.000000"}


def test_the_scale_of_the_intensities_does_not_matter(world: Path) -> None:
    from vnet.data.preprocessing import moments

    array = read_volume(IMAGE)
    mean, std = moments(array)
    for scale in (1e33, 1e-35):
        assert moments(array * np.float32(scale)) == pytest.approx((mean * scale, std * scale), rel=1e-4)


def test_too_many_steps_that_are_not_finite(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch)
    words = [*TRAIN_ODD, "--training.steps", "4", "--training.max_bad_steps", "2", "--training.validate_every", "0"]
    code, _, err = run_vnet("train", [*words, "--arm", "pointrend_s2"], capsys)
    assert code == 3
    wanted = (
        rf"error: {ODD_RUN}: 3 steps with a non-finite loss or gradient, the last at step 2 with cases \w, \w "
        r"\(dice \S+, cross_entropy \S+, point \S+, point_dice \S+\); lower training.learning_rate, .*\n"
    )
    assert re.fullmatch(wanted, err), err
    state = read_checkpoint(ODD_RUN / "checkpoints/last.ckpt")
    assert (state["progress"]["step"], state["progress"]["bad_steps"]) == (2, 2)
    monkeypatch.undo()
    monkeypatch.chdir(world)
    code, _, err = run_vnet("train", [*words, "--arm", "pointrend_s2"], capsys)
    assert (code, err) == (0, "")


def test_a_learning_rate_that_explodes_is_stopped_and_told(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TRAIN_ODD, "--arm", "dense", "--training.learning_rate", "1e38", "--training.steps", "30"]
    words += ["--training.max_bad_steps", "3", "--training.validate_every", "0"]
    code, _, err = run_vnet("train", words, capsys)
    assert code == 3
    assert err.count("\n") == 1
    assert "4 steps with a non-finite loss or gradient" in err


def test_refusing_leaves_what_was_there(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault in a training is told before the run's folder is touched."""
    write_volume(Path(LABEL), np.full(SIZE, 9, np.uint8))
    before = tree(world / "runs/tiny")
    words = ["--config", "tiny.yaml", "--data.root", "data", "--arm", "pointrend_s2"]
    assert run_vnet("train", words, capsys)[0] == 2
    assert tree(world / "runs/tiny") == before


ROOT = Path(__file__).parents[2]
TRAIN = "--config tiny.yaml --data.root data --arm pointrend_s2".split()
# HTML, Markdown, rich's markup, a formula, and a right-to-left mark that hides what follows
STRANGE = "<img src=x onerror=alert(1)>[red]`|=1+1"

OPENED: list[str] | None = None


def note_writes(event: str, args: tuple[object, ...]) -> None:
    if OPENED is None:
        return
    if event == "open" and isinstance(args[0], (str, bytes)) and int(args[2]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):  # type: ignore[call-overload]
        OPENED.append(os.fsdecode(args[0]))
    if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "shutil.move"):
        OPENED.extend(os.fsdecode(arg) for arg in args if isinstance(arg, (str, bytes)))


@pytest.fixture(scope="module")
def auditing() -> None:
    sys.addaudithook(note_writes)  # stays for good, idle outside of `written`


@contextmanager
def written() -> Iterator[list[str]]:
    """Every path that Python opens for writing, makes, renames or removes."""
    global OPENED
    OPENED = found = []
    try:
        yield found
    finally:
        OPENED = None


def outside(paths: list[str], world: Path, *allowed: str) -> list[str]:
    """Paths that lie in none of the allowed folders; caches of compiled code and of fonts are nobody's harm."""
    found = [Path(os.path.realpath(path)) for path in paths]
    inside = [world / name for name in allowed]
    caches = re.compile(r"/__pycache__/|/matplotlib|^/dev/|^/proc/")
    return [str(p) for p in found if not caches.search(str(p)) and not any(p.is_relative_to(f) for f in inside)]


@pytest.mark.slow
def test_nothing_is_written_outside_of_what_is_named(
    auditing: None, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study kept in results/, an evaluation, a prediction, a comparison, phantoms, a check: everything they write."""
    data = tree(world / "data")
    study = [*TRAIN[:4], "--name", "kept", "--study.arms", "{dense: {}}", "--threads", "1"]
    study += ["--study.keep", "true", "--study.results_root", "results"]
    commands = [
        ("train", [*TRAIN, "--name", "other", "--data.cache", "apart"], ("runs", "apart")),
        ("evaluate", [str(RUN), "--points.refine", "false"], ("runs",)),
        ("predict", [str(RUN), "--input", "data/imagesTr", "--output", "out"], ("out",)),
        ("compare", ["runs/tiny", "--output", "report"], ("report",)),
        ("data", ["phantoms", "made", "--count", "2", "--size", "12", "12", "12"], ("made", ".made.part")),
        ("data", ["check", "data"], ()),
        ("experiment", study, ("runs", "results")),
    ]
    for command, words, allowed in commands:
        with written() as paths:
            code, _, err = run_vnet(command, words, capsys)
        assert code == 0, err
        assert outside(paths, world, *allowed) == [], command
    assert tree(world / "data") == data


def test_links_are_followed_for_reading(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("data/imagesTr", "elsewhere")
    Path("data/imagesTr").symlink_to(Path("elsewhere").resolve())
    assert run_vnet("data", ["check", "data"], capsys)[0] == 0


def test_a_link_is_not_written_through(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Predicted labels take the place of a link, not of what it names."""
    Path("precious.nii.gz").write_text("mine")
    Path("out").mkdir()
    Path("out/b.nii.gz").symlink_to(Path("precious.nii.gz").resolve())
    assert run_vnet("predict", [str(RUN), "--input", "data/imagesTr", "--output", "out"], capsys)[0] == 0
    assert Path("precious.nii.gz").read_text() == "mine"
    assert not Path("out/b.nii.gz").is_symlink()


def test_a_pickle_is_not_run(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save(Bomb(), RUN / "checkpoints/last.ckpt")
    for command, words in (
        ("predict", [str(RUN), "--input", "data/imagesTr", "--output", "out"]),
        ("evaluate", [str(RUN)]),
        ("train", [*TRAIN, "--name", "third", "--training.init_from", str(RUN / "checkpoints/last.ckpt")]),
    ):
        code, _, err = run_vnet(command, words, capsys)
        assert code == 2
        assert "holds more than tensors and plain values" in err
    assert not Path("harmed").exists()


@pytest.mark.parametrize("tag", ["object/apply:os.system ['touch harmed']", "name:os.system", "module:os"])
def test_yaml_tags_are_not_followed_in_any_file(tag: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(f"name: !!python/{tag}")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(["--config", "tiny.yaml"])
    with pytest.raises(InputError):
        load_config(["--config", "tiny.yaml", "--name", f"!!python/{tag}"])
    (RUN / "config.yaml").write_text(f"name: !!python/{tag}")
    code, _, err = run_vnet("evaluate", [str(RUN)], capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert not Path("harmed").exists()


def test_a_class_named_in_a_config_is_not_made(world: Path) -> None:
    """jsonargparse can build any class that a config names; ours must not let it."""
    harmful = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "harmed"]}}
    for nested in ({"data": harmful}, {"study": {"arms": {"dense": harmful}}}, {"data": {"fold": harmful}}):
        Path("tiny.yaml").write_text(json.dumps(nested))
        with pytest.raises(InputError):
            load_config(["--config", "tiny.yaml"])
    assert not Path("harmed").exists()


def test_strange_names_reach_terminal_and_report_harmless(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A case and a structure whose names are HTML, Markdown and rich markup."""
    for folder in ("imagesTr", "labelsTr"):
        for name in "ab":
            Path(f"data/{folder}/{name}.nii.gz").rename(f"data/{folder}/{name}{STRANGE.replace('/', '')}.nii.gz")
    cases = [name + STRANGE.replace("/", "") if name in "ab" else name for name in "abcde"]
    describe(
        labels={"0": "background", "1": STRANGE, "2": "far"},
        training=[{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in cases],
    )
    Path("data/splits.json").write_text(json.dumps({"folds": [{"train": cases[2:], "val": cases[:2]}]}))
    assert run_vnet("data", ["check", "data"], capsys)[0] == 0
    for arm in ("dense", "pointrend_s2"):
        code, _, err = run_vnet("train", [*TRAIN, "--arm", arm, "--name", "strange"], capsys)
        assert (code, err) == (0, "")
    code, out, err = run_vnet("compare", ["runs/strange", "--output", "report"], capsys)
    assert (code, err) == (0, "")
    assert STRANGE in out
    page = Path("report/report.html").read_text()
    assert html.escape(STRANGE) in page
    assert "<img src=x" not in page
    code, out, err = run_vnet(
        "predict", ["runs/strange/dense/fold0_seed0", "--input", "data/imagesTr", "--output", "out"], capsys
    )
    assert (code, err) == (0, "")


def test_a_prediction_says_what_it_overwrites(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(RUN), "--input", "data/imagesTr", "--output", "out"]
    assert "overwriting" not in run_vnet("predict", words, capsys)[1]
    for name in "ab":
        Path(f"out/{name}.nii.gz").unlink()
    code, out, err = run_vnet("predict", words, capsys)
    assert (code, err) == (0, "")
    assert "overwriting 3 files in out: c.nii.gz, d.nii.gz, e.nii.gz\n" in out


def test_file_names_cannot_move_the_cursor(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    shutil.copy("data/imagesTr/a.nii.gz", "in/a\x1b[2J\nb.nii.gz")
    Path("in/c\x1b[2J\nd.nii.gz").write_bytes(b"no volume")
    code, out, err = run_vnet("predict", [str(RUN), "--input", "in", "--output", "out"], capsys)
    assert code == 3  # the other image is labelled
    assert err.count("\n") == 1
    assert "\x1b" not in out + err
    code, out, err = run_vnet("data", ["check", "in\x1b[2J"], capsys)
    assert code == 2
    assert "\x1b" not in out + err


def test_the_report_may_load_nothing(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_vnet("compare", ["runs/tiny", "--output", "report"], capsys)[0] == 0
    page = Path("report/report.html").read_text()
    assert "Content-Security-Policy\" content=\"default-src 'none';" in page
    assert "<script" not in page


def test_tensorboard_is_bound_to_localhost() -> None:
    recipe = (ROOT / "Makefile").read_text()
    assert "vnet tensorboard runs" in recipe
    assert '"--host", default="localhost"' in (ROOT / "vnet/commands/tensorboard.py").read_text()
    texts = [recipe, (ROOT / "README.md").read_text(), *(path.read_text() for path in (ROOT / "scripts").glob("*.py"))]
    assert not any(re.search(r"--bind_all|--host[ =](?!localhost)", text) for text in texts)


WORDS = "--config tiny.yaml --data.root data --arm pointrend_s2 --name long --training.steps 8".split()
WORDS += ["--training.validate_every", "4"]
RAN = Path("runs/long/pointrend_s2/fold0_seed0")
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
    "file_size_limit": (
        limit_files,
        2,
        rf"error: {RAN}.*: the file size limit is reached; raise it \(ulimit -f\) .*",
    ),
    "full_disk": (
        refuse_with(errno.ENOSPC),
        2,
        rf"error: {RAN}/checkpoints/.*: the disk is full; free some space .*",
    ),
    "quota": (refuse_with(errno.EDQUOT), 2, rf"error: {RAN}/checkpoints/.*: the disk quota is used up; .*"),
    "read_only": (
        refuse_with(errno.EROFS),
        2,
        rf"error: {RAN}/checkpoints/.*: the file system is read-only; .*",
    ),
    "no_permission": (
        refuse_with(errno.EPERM),
        2,
        rf"error: {RAN}/checkpoints/.*: the system does not permit it; .*",
    ),
    "broken_disk": (
        refuse_with(errno.EIO),
        2,
        rf"error: {RAN}/checkpoints/.*: Input/output error; look at it .*",
    ),
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
    step = read_checkpoint(RAN / "checkpoints/last.ckpt")["progress"]["step"]
    assert FAULT_STEP - 1 <= step < 8
    assert not list(RAN.rglob(".*.part"))
    shutil.rmtree("data")
    shutil.copytree("kept", "data")
    code, _, err = train(capsys)
    assert (code, err) == (0, "")
    assert differences(straight, RAN) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("place", ["vnet.training.run.prepare_data", "vnet.training.trainer.Trainer.evaluate"])
def test_signals_outside_the_loop_end_with_75_too(
    place: str, number: int, fresh: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, lambda *_: os.kill(os.getpid(), number))
        code, out, err = train(capsys)
    assert (code, err) == (75, "")
    assert out.splitlines()[-1] == f"stopped; the same command continues where it stopped: {RAN}"
    assert not (RAN / "cases.csv").exists()
    assert train(capsys)[0] == 0
    assert differences(straight, RAN) == []


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
    assert not (RAN / "cases.csv").exists()


def test_a_run_killed_while_it_wrote_its_first_file_begins_again(
    fresh: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RAN.mkdir(parents=True)
    (RAN / ".run.json.4711.part").write_text('{"config_h')
    assert train(capsys)[0] == 0
    assert differences(straight, RAN) == []
    assert not list(RAN.rglob(".*.part"))


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
    assert differences(straight, RAN) == []
