"""Configs by name: those of the project, from any folder; a file of one's own comes first."""

from pathlib import Path

import pytest

from vnet.core.checkout import checkout, config_file
from vnet.core.config import load_config
from vnet.core.errors import InputError

ROOT = Path(__file__).parents[2]


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkout() == ROOT
    assert config_file("quickstart") == ROOT / "configs" / "quickstart.yaml"
    config = load_config(["--config", "quickstart"])
    assert (config.name, config.training.steps) == ("quickstart", 200)


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("training: {steps: 7}\n")
    assert load_config(["--config", "quickstart"]).training.steps == 7


def test_a_name_that_is_no_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()  # a folder of that name is none either
    assert config_file("quickstart") == ROOT / "configs" / "quickstart.yaml"
    for name in ("quickstar", "configs/quickstart", "../quickstart"):
        with pytest.raises(InputError, match="cannot be read .No such file"):
            load_config(["--config", name])
