"""`vnet` from outside: help at once, one line a fault, exit codes, no traceback; the scripts are its aliases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vnet.commands.main import COMMANDS

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


def test_every_command_has_a_script_of_its_name() -> None:
    assert {f"{name}.py" for name in COMMANDS} <= set(SCRIPTS)


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
