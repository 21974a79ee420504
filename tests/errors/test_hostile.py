"""Somebody else's data set, run or names: followed for reading only, rendered harmless, nothing written outside."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.errors.refusals import Bomb
from tests.errors.world import RUN, describe, run_vnet, tree
from vnet.core.config import load_config
from vnet.core.errors import InputError

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
    assert "tensorboard --logdir runs --host localhost" in recipe
    texts = [recipe, (ROOT / "README.md").read_text(), *(path.read_text() for path in (ROOT / "scripts").glob("*.py"))]
    assert not any(re.search(r"--bind_all|--host[ =](?!localhost)", text) for text in texts)
