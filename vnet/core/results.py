"""The kept results of a study: the tables of its finished runs in one folder, small enough to be committed.

RESULTS/STUDY holds config.yaml (what the runs have in common), runs.csv (a row a run), cases.csv, refinement.csv,
curves.csv (a row a validation), splits.json and, where the data set has one, properties.csv. The first columns of every
table with rows of runs are arm, fold and seed. A run without a row in runs.csv is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vnet.core.checkout import checkout
from vnet.core.config import Config, flatten, hash_defaults, merge, unflatten
from vnet.core.config.hashing import LEFT_OUT
from vnet.core.errors import InputError
from vnet.core.tables import read_table

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
