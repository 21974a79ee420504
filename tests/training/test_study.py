"""A study's runs in order, and the results that are kept of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.launcher import Launcher
from vnet.core import runs
from vnet.core.config import Config, StudyConfig, TrainingConfig, load_config, load_resolved
from vnet.core.environment import checkout
from vnet.core.errors import InputError
from vnet.core.files import RUN_LOCK, Holder, read_table
from vnet.core.runs import Run, RunKey, kept_run, read_kept_runs, results_folder
from vnet.evaluation.study_tables import finished_tables, read_study
from vnet.model.checkpoints import read_checkpoint
from vnet.training import kept_results
from vnet.training.kept_results import keep_run
from vnet.training.run import train_run
from vnet.training.study import (
    StudyStopped,
    run_forwarding_signals,
    run_study,
    study_configs,
    time_left,
    vnet_environment,
)


def test_every_arm_fold_and_seed_is_a_run(tiny: list[str]) -> None:
    runs = [config for config, _ in study_configs([*tiny, "--study.folds", "[0,2]", "--study.seeds", "[0,1,2]"])]
    assert len(runs) == 2 * 2 * 3
    assert len({config.run_folder for config in runs}) == len(runs)
    assert {config.arm for config in runs} == {"dense", "pointrend_s2"}
    # a study that is stopped holds every arm on every fold of its first seeds
    order = [(config.seed, config.data.fold, config.arm) for config in runs]
    assert order == [(s, f, arm) for s in (0, 1, 2) for f in (0, 2) for arm in ("dense", "pointrend_s2")]


def test_a_bad_arm_is_named_before_the_first_run(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "--study.arms", "{dense: {}, pointrend_s2: {network: {width: -1}}}"]
    with pytest.raises(InputError, match="network.width must be 1 or more, got -1"):
        run_study(words)
    assert not (tmp_path / "runs").exists()


def test_a_key_that_tells_arms_apart_is_not_given_to_all_of_them(tiny: list[str], tmp_path: Path) -> None:
    for word, arms in (("points.num_points", "dense"), ("network.output_stride", "dense, pointrend_s2")):
        with pytest.raises(InputError, match=f"{word} would be given to every arm, but {arms} would be"):
            run_study([*tiny, f"--{word}", "2"])
    assert not (tmp_path / "runs").exists()
    given = [config for config, _ in study_configs([*tiny, "--points.refine_fraction", "0.5"])]
    assert {config.points.refine_fraction for config in given} == {0.5}  # no arm sets it


def test_a_study_without_data_ends_before_its_first_run(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for root, message in (
        ("", "data.root: no data set named"),
        ("nowhere", "nowhere: no such folder; name the folder"),
    ):
        with pytest.raises(InputError, match=message):
            run_study([*tiny, "--data.root", root])
    assert capsys.readouterr().out == ""
    assert not Path("runs").exists()


def test_the_time_left_follows_from_the_runs_that_were_trained() -> None:
    start = time.monotonic() - 120
    assert time_left(start, 0, 5) == ""
    assert time_left(start, 2, 3) == ", about 3.0 min left"
    assert time_left(start, 4, 1) == ", about 30 s left"


@pytest.mark.slow
def test_a_study_runs_keeps_and_skips(tiny: list[str], phantoms: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*tiny, "--study.keep", "true"]
    configs = run_study(words)
    assert capfd.readouterr().out.count(f"kept in {Path('results/tiny').absolute()}\n") == 2
    assert sorted(path.name for path in Path("results").rglob("*.*")) == sorted(
        ["config.yaml", "runs.csv", "cases.csv", "refinement.csv", "curves.csv", "splits.json"]
    )
    for path in Path("results/tiny").iterdir():
        assert str(phantoms.parent).encode() not in path.read_bytes(), path  # no machine path in what gets committed
    assert "root: DATA/phantoms\n" in Path("results/tiny/config.yaml").read_text()
    assert list(read_kept_runs(Path("results/tiny"))) == [RunKey("dense", "0", 0), RunKey("pointrend_s2", "0", 0)]
    run_study([*words, "--run_root", "fresh"])
    assert capfd.readouterr().out.count("done;") == 2
    assert not list(Path("fresh").rglob("*.ckpt"))
    assert [config.arm for config in configs] == ["dense", "pointrend_s2"]


@pytest.mark.slow
def test_a_run_that_fails_stops_the_study_with_its_exit_code(tiny: list[str]) -> None:
    with pytest.raises(StudyStopped, match="ended with exit code 2; the same command goes on") as stop:
        run_study([*tiny, "--training.init_from", "nowhere.ckpt"])
    assert stop.value.exit_code == 2


def test_a_signal_reaches_the_run_once() -> None:
    child = (
        "import signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "print('ready', flush=True)\n"
        "while not seen: time.sleep(0.05)\n"
        "time.sleep(0.3)\n"
        "sys.exit(40 + len(seen))\n"
    )
    parent = (
        "import sys\n"
        "from vnet.training.study import run_forwarding_signals\n"
        f"sys.exit(run_forwarding_signals([sys.executable, '-c', {child!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(30) == 41
    process.stdout.close()


def test_exit_codes_pass_through() -> None:
    assert run_forwarding_signals([sys.executable, "-c", "raise SystemExit(75)"]) == 75


# `vnet train`, waiting in its third step until the file `go` is there
WAITING = """
import sys, time
from pathlib import Path
from vnet.training.trainer import Trainer
plain = Trainer.step
def wait(self, *args):
    while self.progress.step == 2 and not Path("go").exists():
        time.sleep(0.02)
    return plain(self, *args)
Trainer.step = wait
from vnet.commands.main import start
start()
"""


@contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-P", "-c", WAITING, "train", *words]
    env = vnet_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(path: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


def files(folder: Path) -> dict[str, object]:
    """What a run leaves, without times and seconds."""
    names = ("cases.csv", "refinement.csv", "splits.json")
    texts: dict[str, object] = {name: (folder / name).read_text() for name in names}
    texts["log.txt"] = [line.split(" ")[:2] for line in (folder / "log.txt").read_text().splitlines()]
    texts["metrics.csv"] = [line.split(",")[:3] for line in (folder / "metrics.csv").read_text().splitlines()]
    texts["names"] = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if "tfevents" not in p.name)
    texts["event files"] = len(list(folder.rglob("*tfevents*")))
    return texts


def require_equal(one: Path, other: Path) -> None:
    assert files(one) == files(other)
    ours, theirs = (read_checkpoint(folder / "checkpoints/last.ckpt")["model"] for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_of_two_simultaneous_starts_one_trains_and_the_other_says_so(tiny: list[str]) -> None:
    words = [*tiny, "--arm", "pointrend_s2"]
    with started(words) as one, started(words) as two:
        while one.poll() is None and two.poll() is None:
            time.sleep(0.02)
        lost, won = (one, two) if one.poll() is not None else (two, one)
        _, said = lost.communicate()
        folder = Path("runs/tiny/pointrend_s2/fold0_seed0")
        assert lost.returncode == 2, said
        assert said == (
            f"error: {folder}: in use by process {won.pid}, which makes this run; wait for it to end, or stop it\n"
        )
        Path("go").touch()
        _, said = won.communicate()
        assert won.returncode == 0, said
    assert not (folder / RUN_LOCK).exists()
    undisturbed = train_run(load_config([*words, "--run_root", "again"])).folder
    require_equal(folder, undisturbed)


@pytest.mark.slow
def test_a_killed_start_does_not_keep_the_next_one_out(tiny: list[str]) -> None:
    words = [*tiny, "--arm", "dense"]
    folder = Path("runs/tiny/dense/fold0_seed0")
    with started(words) as process:
        wait_for(folder / "checkpoints/last.ckpt")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    holder = json.loads((folder / RUN_LOCK).read_text())
    assert holder["process"] == process.pid
    train_run(load_config(words))
    assert not (folder / RUN_LOCK).exists()
    undisturbed = train_run(load_config([*words, "--run_root", "again"])).folder
    assert (folder / "cases.csv").read_text() == (undisturbed / "cases.csv").read_text()


def test_a_start_that_was_killed_before_it_wrote_anything_counts_as_none(tiny: list[str]) -> None:
    folder = Path("runs/tiny/dense/fold0_seed0")
    folder.mkdir(parents=True)
    (folder / RUN_LOCK).write_text("")
    train_run(load_config([*tiny, "--arm", "dense"]))
    assert (folder / "cases.csv").is_file()


@pytest.mark.slow
def test_the_processes_of_one_run_share_its_lock(tiny: list[str], tmp_path: Path) -> None:
    launcher = Launcher()
    try:
        words = [*tiny, "--arm", "dense"]
        ended = launcher.run(tmp_path, 2, "train", *words, fault={"rank": "all", "step": 4, "kind": "kill"})
        assert [one.code for one in ended] == [-9, -9]
        folder = Path("runs/tiny/dense/fold0_seed0")
        assert (folder / RUN_LOCK).exists()
        ended = launcher.run(tmp_path, 2, "train", *words)
        assert [one.code for one in ended] == [0, 0], ended
        assert not (folder / RUN_LOCK).exists()
        # another start while two processes train: one line of the four
        (folder / "cases.csv").unlink()
        (folder / RUN_LOCK).write_text(json.dumps(Holder.here()._asdict()))
        ended = launcher.run(tmp_path, 2, "train", *words)
        assert [one.code for one in ended] == [2, 2]
        (line,) = [line for one in ended for line in one.err.splitlines()]
        assert line.startswith(f"error: {folder}: in use by process {os.getpid()}, which makes this run")
    finally:
        launcher.close()


HASH = "0123456789e5"  # a text that looks like a number


def study(folder: Path, *words: str) -> tuple[Config, Config]:
    """(config of a run, what the runs have in common)."""
    argv = ["--name", "s", "--run_root", str(folder / "runs"), "--study.results_root", str(folder / "kept"), *words]
    return load_config(argv), load_config(argv, apply_arm=False)


def write_run(config: Config, dice: float = 0.5, data_hash: str = HASH) -> Path:
    """The small files of a finished run: two cases, and a head's rows for an arm with a head."""
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "config_hash": config.hash(data_hash),
        "commit": "123456789012",
        "python": "3.11",
        "packages": {"torch": "2.13"},
        "data_hash": data_hash,
        "steps": 5,
        "seconds_per_step": 0.1 + 0.2,
        "peak_memory_prediction_mib": None,
        "device": "3090",
    }
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "splits.json").write_text('{"folds": [{"train": ["a"], "val": ["b", "c"]}]}')
    (folder / "metrics.csv").write_text(f"step,dice\n3,0.1\n5,{dice}\n")
    start = f"{config.arm},{config.data.fold},{config.seed}"
    head = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm\n"
    (folder / "cases.csv").write_text(head + "".join(f"{start},{c},organ,false,{dice},1,,1\n" for c in "bc"))
    head = "case,structure,distance_upto_mm,margin_upto,fixed,broken,unchanged,wrong_before\n"
    (folder / "refinement.csv").write_text(head + "b,organ,1.0,inf,3,1,2,4\n" if config.has_head else "")
    return folder


def test_the_rows_of_every_run_are_in_one_table(tmp_path: Path) -> None:
    for arm, fold, seed, dice in (("pointrend_s2", 1, 0, 0.7), ("dense", 1, 1, 0.6), ("dense", 0, 0, 0.5)):
        config, common = study(tmp_path, "--arm", arm, "--data.fold", str(fold), "--seed", str(seed))
        write_run(config, dice)
        assert keep_run(config, common) == f"kept in {tmp_path / 'kept/s'}"
    folder = tmp_path / "kept/s"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cases.csv", "config.yaml", "curves.csv", "refinement.csv", "runs.csv", "splits.json"
    ]  # fmt: skip
    columns = ("arm", "fold", "seed", "case", "dice", "hd95_mm")
    cases = [tuple(row[column] for column in columns) for row in read_table(folder / "cases.csv")]
    assert cases == [
        ("dense", "0", "0", "b", "0.5", ""), ("dense", "0", "0", "c", "0.5", ""),
        ("dense", "1", "1", "b", "0.6", ""), ("dense", "1", "1", "c", "0.6", ""),
        ("pointrend_s2", "1", "0", "b", "0.7", ""), ("pointrend_s2", "1", "0", "c", "0.7", ""),
    ]  # fmt: skip
    assert [(r["arm"], r["step"], r["dice"]) for r in read_table(folder / "curves.csv")] == [
        ("dense", "3", "0.1"), ("dense", "5", "0.5"), ("dense", "3", "0.1"), ("dense", "5", "0.6"),
        ("pointrend_s2", "3", "0.1"), ("pointrend_s2", "5", "0.7"),
    ]  # fmt: skip
    (refined,) = read_table(folder / "refinement.csv")
    assert refined == {
        "arm": "pointrend_s2", "fold": "1", "seed": "0", "case": "b", "structure": "organ", "distance_upto_mm": "1.0",
        "margin_upto": "inf", "fixed": "3", "broken": "1", "unchanged": "2", "wrong_before": "4",
    }  # fmt: skip


def test_a_row_of_a_run_holds_its_run_json_and_its_config(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "coarse_s4", "--training.steps", "5", "--data.root", "/home/x/Task01")
    info = json.loads((write_run(config) / "run.json").read_text())
    keep_run(config, common)
    run = kept_run(config)
    assert run is not None
    assert run.info == {key: value for key, value in info.items() if value is not None}  # numbers to the last digit
    assert load_resolved(run.config).hash(HASH) == config.hash(HASH) == run.config_hash
    text = "".join(path.read_text() for path in (tmp_path / "kept/s").iterdir())
    assert "DATA/Task01" in text
    assert "/home/x" not in text
    assert str(tmp_path) not in text
    row = next(iter(read_table(tmp_path / "kept/s/runs.csv")))
    assert json.loads(row["config"]) == {"network.output_stride": 4, "points.num_points": 0}


def test_run_folders_and_results_are_read_alike(tmp_path: Path) -> None:
    for arm in ("pointrend_s2", "dense"):
        config, common = study(tmp_path, "--arm", arm)
        write_run(config, 0.5 if arm == "dense" else 0.7)
        keep_run(config, common)
    ours, kept = read_study([tmp_path / "runs"]), read_study([tmp_path / "kept"])
    pd.testing.assert_frame_equal(ours.cases, kept.cases)
    for one, two in zip(ours.runs, kept.runs, strict=True):
        assert one.key == two.key
        assert {k: v for k, v in one.info.items() if v is not None} == two.info
        assert one.config["network"] == two.config["network"]
        assert one.config["study"]["comparisons"] == two.config["study"]["comparisons"]
        for name in ("refinement.csv", "curves.csv"):
            assert one.rows(name).to_dict("records") == two.rows(name).to_dict("records")
        assert one.root == tmp_path / "runs"
        assert two.root == tmp_path / "kept"
    assert len(read_study([tmp_path]).runs) == 2  # a copy counts once


def merge_some(folder: Path, arm: str, seeds: range) -> None:
    for seed in seeds:
        config, common = study(folder, "--arm", arm, "--seed", str(seed))
        write_run(config, seed / 10)
        keep_run(config, common)


def test_processes_that_end_together_keep_each_other_s_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    work = [context.Process(target=merge_some, args=(tmp_path, arm, range(6))) for arm in ("dense", "pointrend_s2")]
    for process in work:
        process.start()
    for process in work:
        process.join(120)
        assert process.exitcode == 0
    folder = tmp_path / "kept/s"
    expected = [RunKey(arm, "0", seed) for arm in ("dense", "pointrend_s2") for seed in range(6)]
    assert list(read_kept_runs(folder)) == expected
    assert [(r["arm"], int(r["seed"]), float(r["dice"])) for r in read_table(folder / "cases.csv")] == [
        (arm, seed, seed / 10) for arm in ("dense", "pointrend_s2") for seed in range(6) for _ in "bc"
    ]
    assert len(read_table(folder / "curves.csv")) == 2 * 12
    assert not (folder / ".lock").exists()


def test_rows_of_the_same_run_are_replaced(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    for dice in (0.5, 0.6):
        write_run(config, dice)
        keep_run(config, common)
    assert [row["dice"] for row in read_table(tmp_path / "kept/s/cases.csv")] == ["0.6", "0.6"]
    assert len(read_kept_runs(tmp_path / "kept/s")) == 1


def test_rows_of_another_config_stay(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config, 0.5)
    keep_run(config, common)
    before = {path: path.read_bytes() for path in (tmp_path / "kept/s").iterdir()}
    words = ["--arm", "dense", "--training.steps", "9", "--run_root", str(tmp_path / "b")]
    longer, longer_common = study(tmp_path, *words)
    write_run(longer, 0.9)
    said = keep_run(longer, longer_common)
    assert said == (
        f"{tmp_path}/kept/s: holds dense fold 0 seed 0 of another config, and stays as it is; name the study anew, or "
        "remove that folder and run it again"
    )
    other, _ = study(tmp_path, "--arm", "coarse_s2")
    write_run(other, data_hash="else")
    assert "holds runs on other data, and stays as it is" in keep_run(other, common)
    assert before == {path: path.read_bytes() for path in (tmp_path / "kept/s").iterdir()}


def test_old_rows_keep_their_config_where_the_study_s_changes(tmp_path: Path) -> None:
    """A key that all runs had in common until now differs from then on: it moves into the rows of the older runs."""
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    keep_run(config, common)
    wider, wider_common = study(tmp_path, "--arm", "coarse_s2", "--network.width", "8")
    write_run(wider)
    keep_run(wider, wider_common)
    runs = read_kept_runs(tmp_path / "kept/s")
    for one in (config, wider):
        assert load_resolved(runs[RunKey.of(one)].config).hash(HASH) == one.hash(HASH)


def test_a_row_without_its_run_is_no_result(tmp_path: Path) -> None:
    """As where a merge was cut short: runs.csv, written last, says which runs are finished."""
    for arm in ("dense", "coarse_s2"):
        config, common = study(tmp_path, "--arm", arm)
        write_run(config)
        keep_run(config, common)
    path = tmp_path / "kept/s/runs.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("coarse")) + "\n")
    assert {run.arm for run in read_study([tmp_path / "kept"]).runs} == {"dense"}
    assert set(read_study([tmp_path / "kept"]).cases["arm"]) == {"dense"}


def test_a_run_counts_from_where_it_is_finished(tmp_path: Path) -> None:
    configs = []
    for arm in ("dense", "coarse_s2", "pointrend_s2"):
        config, common = study(tmp_path, "--arm", arm)
        configs.append(config)
        write_run(config, 0.5)
        keep_run(config, common)
        (config.run_folder / "cases.csv").unlink()
    write_run(configs[1], 0.6)  # finished here as well
    stale, _ = study(tmp_path, "--arm", "dense", "--training.steps", "9")
    write_run(stale, 0.9)  # of another config, where `dense` would lie
    found = finished_tables(configs)
    kept = tmp_path / "kept/s/cases.csv"
    assert found == {
        RunKey("dense", "0", 0): kept,
        RunKey("coarse_s2", "0", 0): configs[1].run_folder / "cases.csv",
        RunKey("pointrend_s2", "0", 0): kept,
    }
    read = read_study(list(dict.fromkeys(found.values())), found)
    assert read.cases.groupby("arm")["dice"].mean().to_dict() == {"dense": 0.5, "coarse_s2": 0.6, "pointrend_s2": 0.5}


def test_kept_tables_of_another_config_do_not_make_a_run_done(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    keep_run(config, common)
    elsewhere, _ = study(tmp_path, "--arm", "dense", "--run_root", str(tmp_path / "fresh"))
    assert Run(elsewhere.run_folder, elsewhere.hash(HASH)).state(elsewhere, HASH) == "kept"
    assert Run(elsewhere.run_folder, elsewhere.hash("else")).state(elsewhere, "else") == "new"
    longer, _ = study(tmp_path, "--arm", "dense", "--run_root", str(tmp_path / "fresh"), "--training.steps", "9")
    assert Run(longer.run_folder, longer.hash(HASH)).state(longer, HASH) == "new"


def test_results_lie_in_the_checkout_and_not_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(name="s", run_root="there")
    assert results_folder(config) == Path(__file__).parents[2] / "results" / "s" == checkout() / "results" / "s"  # type: ignore[operator]
    monkeypatch.setattr(runs, "checkout", lambda: None)
    assert results_folder(config) == Path("there/results/s")
    chosen = Config(name="s", study=StudyConfig(results_root="mine"), training=TrainingConfig())
    assert results_folder(chosen) == Path("mine/s")


def test_results_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    keep_run(config, common)
    folder = tmp_path / "kept/s"
    whole = (folder / "runs.csv").read_text()
    (folder / "runs.csv").write_text(whole.replace("dense,0,0", "dense,0,zero"))
    with pytest.raises(InputError, match=r"runs.csv: is no table of runs .*zero.*; restore the file"):
        kept_run(config)
    (folder / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="runs.csv: is no table of runs"):
        kept_run(config)
    (folder / "runs.csv").write_text(whole)
    (folder / "config.yaml").write_text("- 1")
    with pytest.raises(InputError, match="config.yaml: must hold keys and values; restore the file"):
        kept_run(config)
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match="config.yaml: cannot be read"):
        keep_run(config, common)


def test_results_beyond_what_is_committed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_results, "MOST_BYTES", 1500)
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    with pytest.raises(InputError, match="would be over 0 MiB; set study.keep: false"):
        keep_run(config, common)
    assert not (tmp_path / "kept/s/runs.csv").exists()


def test_a_run_from_a_changed_tree_is_known(tmp_path: Path) -> None:
    for arm, commit in (("dense", "abc+"), ("coarse_s2", "abc"), ("coarse_s4", "")):
        config, common = study(tmp_path, "--arm", arm)
        path = write_run(config) / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": commit}))
        keep_run(config, common)
    assert {run.arm: run.changed_tree for run in read_study([tmp_path / "kept"]).runs} == {
        "dense": True, "coarse_s2": False, "coarse_s4": False
    }  # fmt: skip
