"""The working folder of a test: a copy of one that was made, and trained in, once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.errors.world import write_world


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    """Its copy, as the working folder."""
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder
