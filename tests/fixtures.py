"""Small data sets, and configs that train on them in seconds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.errors.world import write_world
from vnet.data.phantoms import PhantomKind, write_phantoms

TINY = {
    "network": {
        "width": 4,
        "kernel": 3,
        "norm": "instance",
        "down": [1, 1, 1],
        "up": [1, 1],
        "strides": [[2, 2, 2]] * 2,
    },
    "points": {"num_points": 128},
    "training": {"steps": 6, "batch": 2, "patch": [16, 24, 32], "validate_every": 3, "checkpoint_every": 2},
    "study": {"arms": {"dense": {}, "pointrend_s2": {}}},
}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small labelled volumes in a Decathlon folder; tests that change it copy it first."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, 6, seed=3, kind=PhantomKind(size=(20, 24, 28)))
    return root


@pytest.fixture
def own_phantoms(phantoms: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(phantoms, tmp_path / "own"))


@pytest.fixture
def tiny(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of a command line that trains for six steps, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    places = ["--data.root", str(phantoms), "--study.results_root", str(tmp_path / "results")]
    return ["--config", str(file), *places, "--threads", "1"]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set, a config and a trained run; tests take a copy of it."""
    from vnet.core.config import load_config
    from vnet.training.run import train_run

    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        train_run(load_config(["--config", "tiny.yaml", "--data.root", "data", "--arm", "pointrend_s2"]))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `template` as the working folder."""
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder
