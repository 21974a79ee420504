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

from vnet.core.config import Config, differing_keys, load_resolved
from vnet.core.errors import InputError
from vnet.core.files import is_part, naming_path, read_json, write_text
from vnet.core.locks import RUN_LOCK
from vnet.core.results import kept_run

SHOWN_KEYS = 5  # in which a config differs


@dataclass(frozen=True)
class Run:
    """A run folder and the config hash that it stands for."""

    folder: Path
    config_hash: str

    def state(self, config: Config, data_hash: str) -> Literal["done", "kept", "started", "new"]:
        """How far the run is: `done` in its folder, `kept` in the study's results alone, `started` or `new`.

        Args:
            config: of the run.
            data_hash: of its data set; with `config` it makes up `config_hash`.

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
            if self.folder.is_dir() and not all(_may_be_left_over(path) for path in self.folder.iterdir()):
                raise InputError(
                    f"{self.folder}: holds files but no run.json of this project; name another run_root or name"
                )
            return "new"
        if found != self.config_hash:
            raise InputError(
                f"{self.folder}: holds another experiment ({self._difference(config, data_hash)}); give this one "
                "another name or run_root, or remove that folder"
            )
        return "started"

    def _difference(self, config: Config, data_hash: str) -> str:
        """In which keys the config differs from that of the folder, and whether the data do."""
        keys = differing_keys(config.to_dict(), read_nested(self.folder / "config.yaml") or {}, Config)
        shown = [f"{key} {json.dumps(now)}, there {json.dumps(there)}" for key, (now, there) in keys.items()]
        more = [f"{len(shown) - SHOWN_KEYS} more keys"] if len(shown) > SHOWN_KEYS else []
        data = ["other data"] if self.info().get("data_hash") != data_hash else []
        return "; ".join([*shown[:SHOWN_KEYS], *more, *data])

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
        with naming_path(path), path.open("a", encoding="utf-8") as file:
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
    nested = read_nested(folder / "config.yaml")
    if nested is None:
        raise InputError(f"{folder / 'config.yaml'}: cannot be read as YAML of keys and values; restore it")
    # a run may be used on another machine than the one that trained it
    nested |= {"device": "auto"}
    return Run(folder, config_hash), load_resolved(nested, overrides, where=str(folder / "config.yaml"))


def read_nested(path: Path) -> dict[str, Any] | None:
    """The nested keys of a resolved config, None where the file is missing or is no such YAML."""
    try:
        nested = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return nested if isinstance(nested, dict) else None


def _may_be_left_over(path: Path) -> bool:
    """Whether a start that was killed before it wrote run.json may have left this file."""
    return is_part(path) or path.name == RUN_LOCK
