"""A study: its runs, what it skips and keeps, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vnet.core.errors import InputError
from vnet.core.runs import RunKey, read_kept_runs
from vnet.training.study import StudyStopped, run_forwarding_signals, run_study, study_configs


def test_every_arm_fold_and_seed_is_a_run(tiny: list[str]) -> None:
    runs = [config for config, _ in study_configs([*tiny, "--study.folds", "[0,2]", "--study.seeds", "[0,1,2]"])]
    assert len(runs) == 2 * 2 * 3
    assert len({config.run_folder for config in runs}) == len(runs)
    assert {config.arm for config in runs} == {"dense", "pointrend_s2"}


def test_a_bad_arm_is_named_before_the_first_run(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "--study.arms", "{dense: {}, pointrend_s2: {network: {width: -1}}}"]
    with pytest.raises(InputError, match="network.width must be 1 or more, got -1"):
        run_study(words)
    assert not (tmp_path / "runs").exists()


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


def test_a_run_that_fails_stops_the_study_with_its_exit_code(tiny: list[str]) -> None:
    with pytest.raises(StudyStopped, match="ended with exit code 2; the same command goes on") as stop:
        run_study([*tiny, "--data.root", "nowhere"])
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
