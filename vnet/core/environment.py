"""The environment of a run: the checkout with its configs, and the versions and hardware that a result depends on."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vnet
from vnet.core.errors import InputError

PACKAGE = Path(vnet.__file__).parent


def checkout() -> Path | None:
    """The folder of pyproject.toml where the package is run from a checkout, None where it is installed apart."""
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() else None


def config_folder() -> Path:
    """The folder of the configs that come with the project: configs/ of a checkout, vnet/configs of a wheel."""
    root = checkout()
    return root / "configs" if root else PACKAGE / "configs"


def config_file(name: str) -> Path:
    """The file that `--config NAME` means: the path NAME, or the config of that name that comes with the project."""
    shipped = config_folder() / f"{name}.yaml"
    return shipped if name == Path(name).name and shipped.is_file() and not Path(name).is_file() else Path(name)


def groups_file(name: str) -> Path:
    """The file that `data.groups: NAME` means: the path NAME, or the table of that name beside the configs."""
    shipped = config_folder() / name
    return shipped if name == Path(name).name and shipped.is_file() and not Path(name).is_file() else Path(name)


def model_folder(name: str) -> Path:
    """The bundle that `--model NAME` means: models/NAME of a checkout, vnet/models/NAME of a wheel.

    Raises:
        InputError: no model of that name comes with the project.
    """
    root = checkout()
    folder = root / "models" if root else PACKAGE / "models"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if name not in names:
        raise InputError(f"--model {name}: no such model; it is one of {', '.join(names)}")
    return folder / name


PACKAGES = ("torch", "monai", "lightning-fabric", "numpy", "numba", "nibabel")


def environment() -> dict[str, Any]:
    """Commit, Python, processor, cores and package versions; without the name of the machine."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def portable_command(words: Sequence[str]) -> str:
    """A `vnet` command line without folders of this machine: data appear as DATA/NAME, other folders are left out.

    Args:
        words: after `vnet`, options as `--key value` or `--key=value`.
    """
    pairs: list[str] = []
    rest = list(words)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option in ("--data.root", "--data.cache", "--run_root", "--study.results_root", "--config", "--data.groups"):
            value = value if equals else rest.pop(0) if rest else ""
            if option == "--data.root":
                pairs += [option, f"DATA/{Path(value).name}"]
            elif option in ("--config", "--data.groups"):
                pairs += [option, Path(value).name if Path(value).is_absolute() else value]
        else:
            pairs.append(option + equals + value)
    return shlex.join(["vnet", *pairs])


def commit() -> str:
    """Commit of the code, followed by `+` where tracked files differ from it; empty outside a checkout.

    Files below results/ do not count: the runs of a study write there as they end.
    """
    here = Path(__file__).parent
    changed = ("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)results")

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git(*changed) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed_version() -> str | None:
    """The version of the installed distribution; None of a checkout on PYTHONPATH."""
    try:
        return version("pointrend")
    except PackageNotFoundError:
        return None
