"""Scripts from outside: help at once, one line a fault, exit codes, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def run(folder: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_loading_torch(script: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '--help']\n"
        "try:\n"
        f"    runpy.run_path(r'{ROOT / 'scripts' / script}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    loaded = [name for name in ('torch', 'monai', 'numba', 'matplotlib', 'pandas') if name in sys.modules]\n"
        "    sys.exit(f'loaded {loaded}' if loaded else end.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("train.py", ["--data.fol", "1"], "unknown key data.fol; did you mean data.fold?"),
        ("train.py", ["--config", "none.yaml"], "none.yaml: cannot be read"),
        ("train.py", ["--arm", "dense"], "data.root: no data set named; add --data.root FOLDER"),
        ("train.py", ["--data.root", "nowhere"], "nowhere"),
        ("experiment.py", ["--study.equivalence_margin", "-1"], "study.equivalence_margin must be 0 or more"),
        ("evaluate.py", ["nowhere"], "nowhere: not a run"),
        ("evaluate.py", [], "the following arguments are required: RUN"),
        ("predict.py", ["nowhere", "--input", "x", "--output", "y"], "nowhere: not a run"),
        (
            "predict.py",
            ["nowhere", "--input", "x", "--output", "y", "--checkpoint", "first"],
            "invalid choice: 'first'",
        ),
        ("compare.py", ["nowhere"], "nowhere"),
        ("data.py", ["check", "nowhere"], "nowhere"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_2(script: str, words: list[str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, script, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
