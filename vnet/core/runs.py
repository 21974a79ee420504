"""Runs: the folder of one, and the kept results of a study's finished ones.

RUN_ROOT/NAME/ARM/foldF_seedS holds config.yaml, run.json, splits.json, log.txt, metrics.csv, cases.csv, refinement.csv,
pictures/{,change_}{worst,median,best}_CASE.png, checkpoints/{last,best}.ckpt and TensorBoard events.

RESULTS/STUDY is small enough to be committed. It holds config.yaml (what the runs have in common), runs.csv (a row a
run), cases.csv, refinement.csv, curves.csv (a row a validation), splits.json and, where the data set has one,
properties.csv. The first columns of every table with rows of runs are arm, fold and seed. A run without a row in
runs.csv is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from vnet.core.config import Config, differing_keys, flatten, hash_defaults, load_resolved, merge, unflatten
from vnet.core.config.keys import LEFT_OUT
from vnet.core.environment import checkout
from vnet.core.errors import InputError
from vnet.core.files import RUN_LOCK, is_part, naming_path, read_json, read_table, write_text

RUNS, CONFIG = "runs.csv", "config.yaml"
OVERRIDES = "config"  # column of runs.csv: JSON of the keys in which a run differs from config.yaml
# Columns of runs.csv that hold text, also where it looks like a number (a hash such as 1234e567).
TEXT = ("config_hash", "commit", "python", "processor", "data_set", "data_hash", "name", "date", "command")


class RunKey(NamedTuple):
    """Which run of a study."""

    arm: str
    fold: str
    seed: int

    @classmethod
    def of(cls, config: Config) -> RunKey:
        return cls(config.arm, str(config.data.fold), config.seed)


@dataclass(frozen=True)
class KeptRun:
    """A row of runs.csv.

    Attributes:
        info: what the run's run.json held.
        config: every key of the run's resolved config, nested.
    """

    key: RunKey
    info: dict[str, Any]
    config: dict[str, Any]

    @property
    def config_hash(self) -> str:
        return str(self.info.get("config_hash", ""))


def results_folder(config: Config) -> Path:
    """Where the results of the study of `config` are kept.

    `study.results_root` where the config names it, else results/ of the checkout that this code runs from, else
    RUN_ROOT/results; the working directory does not count.
    """
    if config.study.results_root:
        return Path(config.study.results_root, config.name)
    return next(iter(shipped_results()), Path(config.run_root, "results")) / config.name


def shipped_results() -> tuple[Path, ...]:
    """The folder results/ of the checkout that this code runs from; none where it is installed apart."""
    root = checkout()
    return (root / "results",) if root else ()


def kept_run(config: Config) -> KeptRun | None:
    """The kept row of the run of `config`, whatever its hash; None where there is none."""
    return read_kept_runs(results_folder(config)).get(RunKey.of(config))


def read_kept_runs(folder: Path) -> dict[RunKey, KeptRun]:
    """The rows of RESULTS/STUDY/runs.csv, {} where there is no such file.

    Raises:
        InputError: runs.csv or config.yaml cannot be read.
    """
    path = folder / RUNS
    rows = read_table(path)
    # a key that config.yaml does not know is newer than the runs, and means what was done then
    common = merge(unflatten(_defaults()), read_study_config(folder)) if rows else {}
    found = {}
    for row in rows:
        try:
            key = RunKey(row.pop("arm"), row.pop("fold"), int(row.pop("seed")))
            overrides = json.loads(row.pop(OVERRIDES) or "{}")
            info = unflatten({name: _value(name, text) for name, text in row.items() if text})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is no table of runs ({error}); restore the file") from None
        own = {"arm": key.arm, "seed": key.seed, "data.fold": key.fold if key.fold == "all" else int(key.fold)}
        found[key] = KeptRun(key, info, merge(common, unflatten(overrides | own)))
    return found


def read_study_config(folder: Path) -> dict[str, Any]:
    """The nested keys of config.yaml.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        nested = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder / CONFIG}: cannot be read ({error}); restore the file") from None
    if not isinstance(nested, dict):
        raise InputError(f"{folder / CONFIG}: must hold keys and values; restore the file")
    return nested


def study_config(common: Config) -> dict[str, Any]:
    """What config.yaml holds: the keys that the runs have in common, without the folders of this machine.

    Args:
        common: from `load_config(..., apply_arm=False)`.
    """
    nested = common.to_dict()
    for key in ("arm", "seed", "threads", "run_root"):
        del nested[key]
    for key in ("fold", "cache"):
        del nested["data"][key]
    nested["data"]["root"] = f"DATA/{Path(common.data.root).name}"
    if common.data.groups:
        nested["data"]["groups"] = Path(common.data.groups).name
    del nested["study"]["results_root"]
    return nested


def run_row(run: KeptRun, common: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a run's row in runs.csv.

    Args:
        common: the keys of config.yaml.
    """
    flat = flatten(common)
    overrides = {
        key: value
        for key, value in flatten(run.config).items()
        if key not in ("arm", "seed", "data.fold")
        and not any(key == place or key.startswith(f"{place}.") for place in LEFT_OUT)
        and (key not in flat or flat[key] != value)
    }
    return {
        **{name: str(value) for name, value in run.key._asdict().items()},
        **{name: _cell(name, value) for name, value in flatten(run.info).items()},
        OVERRIDES: json.dumps(overrides),
    }


def _defaults() -> dict[str, Any]:
    return {key: value for key, value in hash_defaults(Config).items() if not key.startswith("study.")}


def _is_text(column: str) -> bool:
    return column in TEXT or column.startswith("packages.")


def _cell(column: str, value: Any) -> str:
    """A value as text: numbers with all of their digits, null as a blank."""
    if value is None:
        return ""
    if isinstance(value, str) and (_is_text(column) or _value(column, value) == value):
        return value
    return json.dumps(value)


def _value(column: str, text: str) -> Any:
    if _is_text(column):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


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
