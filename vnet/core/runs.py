"""A run's folder: what it holds, and whether it is done.

RUN_ROOT/NAME/ARM/foldF_seedS holds config.yaml, run.json, splits.json, log.txt, metrics.csv, cases.csv, refinement.csv,
pictures/{worst,median,best}_CASE.png, checkpoints/{last,best}.ckpt and TensorBoard events.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vnet.core.config import Config, load_resolved
from vnet.core.errors import InputError
from vnet.core.files import is_part, naming, read_json, write_text
from vnet.core.results import kept_run


@dataclass(frozen=True)
class Run:
    """A run folder and the config hash that it stands for."""

    folder: Path
    config_hash: str

    def state(self, config: Config) -> Literal["done", "kept", "started", "new"]:
        """How far the run is: `done` in its folder, `kept` in the study's results alone, `started` or `new`.

        Raises:
            InputError: the folder holds another experiment.
        """
        if finished_hash(self.folder) == self.config_hash:
            return "done"
        kept = kept_run(config)
        if kept is not None and kept.config_hash == self.config_hash:
            return "kept"
        found = read_hash(self.folder)
        if found is None:
            if self.folder.is_dir() and not all(is_part(path) for path in self.folder.iterdir()):
                raise InputError(
                    f"{self.folder}: holds files but no run.json of this project; name another run_root or name"
                )
            return "new"
        if found != self.config_hash:
            raise InputError(
                f"{self.folder}: holds another experiment (config or data differ: hash {found}, now "
                f"{self.config_hash}); give this one another name or run_root, or remove that folder"
            )
        return "started"

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    def info(self) -> dict[str, Any]:
        """What run.json holds."""
        return read_json(self.folder / "run.json") or {}

    def write_info(self, **info: Any) -> None:
        """Add to run.json, which always holds the config hash."""
        known = {"config_hash": self.config_hash} | self.info()
        write_text(self.folder / "run.json", json.dumps(known | info, indent=2) + "\n")

    def log(self, line: str) -> None:
        path = self.folder / "log.txt"
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def read_hash(folder: Path) -> str | None:
    """Config hash of the run in `folder`, None where there is none."""
    info = read_json(folder / "run.json")
    return str(info["config_hash"]) if info and "config_hash" in info else None


def finished_hash(folder: Path) -> str | None:
    """Config hash of a finished run: run.json and cases.csv are there."""
    return read_hash(folder) if (folder / "cases.csv").is_file() else None


def is_finished(config: Config) -> bool:
    """Whether RUN_ROOT holds the finished run of `config`, on whatever data, and no other experiment's."""
    info = read_json(config.run_folder / "run.json") or {}
    found = finished_hash(config.run_folder)
    return found is not None and found == config.hash(str(info.get("data_hash")))


def open_run(folder: str | Path, overrides: Sequence[str] = ()) -> tuple[Run, Config]:
    """The run in `folder` and its resolved config, with `--key value` overrides; `device` is `auto` unless given.

    Raises:
        InputError: not a run folder.
    """
    folder = Path(folder)
    config_hash = read_hash(folder)
    if config_hash is None or not (folder / "config.yaml").is_file():
        raise InputError(
            f"{folder}: not a run (no config.yaml and run.json); name a folder RUN_ROOT/NAME/ARM/foldF_seedS"
        )
    try:
        nested = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{folder / 'config.yaml'}: cannot be read: {error}") from None
    # a run may be used on another machine than the one that trained it
    nested = (nested or {}) | {"device": "auto"}
    return Run(folder, config_hash), load_resolved(nested, overrides, where=str(folder / "config.yaml"))
