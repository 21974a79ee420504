"""Small phantoms and a config that trains on them in seconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from vnet.data.phantoms.organs import PhantomKind, write_phantoms

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
    return ["--config", str(file), "--data.root", str(phantoms), "--threads", "1"]
