"""The commands: help without torch, faults in one line, the list of runs, and the packages of the wheel."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from numba.core import event
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from tests.docs.pages import blocks
from tests.fixtures import run_vnet
from vnet.commands import tensorboard
from vnet.commands.main import COMMANDS
from vnet.core import progress
from vnet.core.config import load_config
from vnet.training.study import share_of

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
HEAVY = ("torch", "monai", "numba", "matplotlib", "pandas")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """This Python with `words`, in a folder, with the packages of this checkout."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, env=env, check=False)


def loads(*words: str) -> str:
    """A program that runs `words` as a script and then fails if it loaded a heavy library."""
    return (
        "import runpy, sys\n"
        f"sys.argv = {list(words)!r}\n"
        "try:\n"
        f"    runpy.run_path({words[0]!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        f"    loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "    sys.exit(f'loaded {loaded}' if loaded else end.code)\n"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_script_answers_without_loading_torch(script: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", loads(str(ROOT / "scripts" / script), "--help"))
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
    name = script.removesuffix(".py")
    assert (f"usage: vnet {name}" in done.stdout) == (name in COMMANDS)


WITHOUT_SCRIPT = sorted(name for name in COMMANDS if f"{name}.py" not in SCRIPTS)


def test_every_command_has_a_script_of_its_name_or_came_after_the_scripts() -> None:
    # scripts/tensorboard.py would stand before the package of that name
    assert WITHOUT_SCRIPT == ["export", "nnunet", "tensorboard"]


@pytest.mark.parametrize("command", WITHOUT_SCRIPT)
def test_a_command_without_script_answers_in_a_checkout_too(command: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-c", loads(str(ROOT / "vnet" / "__main__.py"), command, "--help"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: vnet {command}" in done.stdout


def test_help_names_every_command_without_loading_torch(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", loads(str(ROOT / "vnet" / "__main__.py"), "--help"))
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name a command, one of experiment, train, "),
        ("trian", "unknown command trian; did you mean train?"),
        ("train --data.fol 1", "unknown key data.fol; did you mean data.fold?"),
        ("evaluate", "the following arguments are required: RUN"),
        ("predict nowhere --input x --output y --checkpoint first", "invalid choice: 'first'"),
        ("compare nowhere", "nowhere"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(words: str, message: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "vnet", *words.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: command line: " if "nowhere" not in words.split()[1:2] else "error: ")
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    code, out, err = run_vnet("experiment", [*words, "--list"], capsys)
    assert (code, err) == (0, "")
    return out.splitlines()


def test_each_run_is_listed_as_a_command_that_makes_it(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed([*tiny, "--study.folds", "[0,2]", "--study.seeds", "[1,3]"], capsys)
    runs = set()
    for line in lines:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("vnet", "train")
        config = load_config(words)
        runs.add((config.arm, config.data.fold, config.seed))
    assert len(lines) == 8
    assert runs == {(arm, fold, seed) for arm in ("dense", "pointrend_s2") for fold in (0, 2) for seed in (1, 3)}
    assert not Path("runs").exists()


def test_shares_hold_every_run_once(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*tiny, "--study.folds", "[0,1,2]", "--study.arms", "{dense: {}}"]
    whole = listed(words, capsys)
    shares = [listed([*words, "--only", f"{k}/2"], capsys) for k in (1, 2)]
    assert [len(share) for share in shares] == [2, 1]
    assert sorted(line for share in shares for line in share) == sorted(whole)
    assert share_of("ab", 3, 3) == []


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_share_is_refused(share: str, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_vnet("experiment", [*tiny, f"--only={share}"], capsys)
    assert (code, err) == (2, f"error: --only must be K/N, the K-th of N shares, K from 1 to N; got {share}\n")


@pytest.mark.slow
def test_a_comparison_finds_the_runs_of_all_shares(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for share in ("1/2", "2/2"):
        code, out, err = run_vnet("experiment", [*tiny, "--only", share], capfd)
        assert (code, err) == (0, "")
        assert f"share {share} is done (1 runs); after the others: vnet experiment " in out
    for folder in ("runs/tiny", "runs"):
        code, out, err = run_vnet("compare", [folder], capfd)
        assert (code, err) == (0, "")
        assert "pointrend_s2 - dense" in out


PAGE = (ROOT / "docs/distributed.md").read_text()
JOBS = {
    code.split("scontrol requeue ")[1].split("   #")[0].strip(): code for code in blocks(PAGE, "sh") if "SBATCH" in code
}
# what the command of a job does: ends by itself, is asked to stop at the time limit, is killed
RUNS = {
    0: "exit 0",
    3: "exit 3",
    75: "trap 'exit 75' USR1; touch started; while true; do sleep 0.05; done",
    137: "kill -9 $$",
}


@pytest.mark.parametrize("code", RUNS)
@pytest.mark.parametrize("job", JOBS.values(), ids=["one run", "array"])
def test_a_job_ends_as_its_run_and_is_requeued_where_it_was_stopped(job: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(job)
    array = "--array" in job
    programs = {"vnet": RUNS[code], "srun": 'shift; exec "$@"', "scontrol": 'echo "$@" >requeued'}
    for name, lines in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    numbers = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "2"}
    env = os.environ | numbers | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=env, process_group=0, stderr=subprocess.DEVNULL)
    if code == 75:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        if array:
            process.send_signal(signal.SIGUSR1)  # --signal=B: to the shell alone
        else:
            (run,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(run), signal.SIGUSR1)  # to the processes of srun
    assert process.wait(timeout=20) == code
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == (
        f"requeue {'8_2' if array else '7'}\n" if code == 75 else ""
    )


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run_vnet("tensorboard", [".", "--port", str(port)], capsys)
        assert code == 2
        assert f"--port {port}: taken; if your TensorBoard runs there, open http://localhost:{port}/data/" in err
        monkeypatch.setattr(tensorboard, "PORT", port)
        assert tensorboard.free_port() > port
    assert f"port {port} is taken, perhaps by a TensorBoard that still runs; this one takes" in capsys.readouterr().out


def test_the_page_of_curves_sets_what_no_address_can() -> None:
    page = tensorboard.CurvesPage(TBContext())
    answer = Client(page.get_plugin_apps()["/curves"]).get("/")
    assert answer.status_code == 200
    script = re.search("<script>(.*)</script>", answer.text, re.DOTALL)
    assert script
    for part in ("scalarSmoothing: 0", "ignoreOutliers: false", '"_ignoreYOutliers", "false"', "?smoothing=0"):
        assert part in script[1]
    allowed = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{allowed}'" in answer.headers["Content-Security-Policy"]
    assert f"data/plugin/{page.plugin_name}/curves" == tensorboard.PATH


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MESSAGE = "vnet needs packages that this Python lacks ("


def test_every_package_is_named_for_the_wheel() -> None:
    found = {path.parent for name in ("pointrend", "vnet") for path in (ROOT / name).rglob("*.py")}
    packages = {".".join(path.relative_to(ROOT).parts) for path in found}
    assert sorted(packages | {"vnet.configs", "vnet.models"}) == PROJECT["tool"]["setuptools"]["packages"]


def test_the_library_alone_needs_three_packages() -> None:
    assert [word.split(">")[0] for word in PROJECT["project"]["dependencies"]] == ["torch", "numpy", "numba"]


def test_the_version_is_the_citations() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["project"]["version"]


def without_packages(*words: str) -> subprocess.CompletedProcess[str]:
    """A Python that has its standard library and this checkout alone."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = [sys.executable, "-S", *words]  # -S: no installed package
    return subprocess.run(python, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_a_command_without_the_extra_names_it_in_one_line() -> None:
    for words in (["-m", "vnet", "--help"], ["scripts/data.py", "check", "DATA"]):
        done = without_packages(*words)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {MESSAGE}torch, numpy, ")
        assert "pip install 'pointrend[vnet]'" in line
        assert "source .venv/bin/activate" in line


def test_importing_vnet_without_the_extra_raises_with_that_line() -> None:
    done = without_packages("-c", "import vnet")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {MESSAGE}")


def test_compiling_is_announced_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def loop() -> None: ...

    monkeypatch.setattr(progress, "_announced", [])  # an earlier test may have compiled
    progress.announce_compiling()
    progress.announce_compiling()
    for module in ("monai.loops", "pointrend._kernels.rendering", "pointrend._kernels.reading"):
        loop.__module__ = module
        with event.trigger_event("numba:compile", data={"dispatcher": SimpleNamespace(py_func=loop)}):
            pass
    out = capsys.readouterr().out
    assert out == "compiling loops, once after each installation: about half a minute in all\n"


def test_durations_are_told_in_words_of_their_size() -> None:
    assert [progress.duration(seconds) for seconds in (0.4, 99, 100, 5900, 9000)] == [
        "0.4 s",
        "99 s",
        "1.7 min",
        "98.3 min",
        "2.5 h",
    ]
