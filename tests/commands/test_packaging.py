"""What the wheel holds, and what a Python without the extra says."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MESSAGE = "vnet needs packages that this Python lacks ("


def test_every_package_is_named_for_the_wheel() -> None:
    found = {path.parent for name in ("pointrend", "vnet") for path in (ROOT / name).rglob("*.py")}
    packages = {".".join(path.relative_to(ROOT).parts) for path in found}
    assert sorted(packages | {"vnet.configs"}) == PROJECT["tool"]["setuptools"]["packages"]


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
