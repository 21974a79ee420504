"""A run's folder, and the study's tables in results/, which a fresh clone can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.nuclei.config import Config
from vnet.core.errors import InputError
from vnet.core.files import file_lock, read_json, read_table, write_table, write_text

Rows = Sequence[Mapping[str, Any]]


class RunFolder:
    """RUN_ROOT/NAME/ARM/seedS: config.yaml, run.json, metrics.csv, cases.csv, nuclei.csv, checkpoints, TensorBoard.

    Args:
        config: of the run.
        data_hash: of the images.
    """

    def __init__(self, config: Config, data_hash: str) -> None:
        self.config, self.path = config, config.folder
        self.identity = {"config_hash": config.hash(data_hash), "data_hash": data_hash}

    def is_done(self) -> bool:
        """Whether the run has been scored.

        Raises:
            InputError: the folder holds another experiment.
        """
        info = read_json(self.path / "run.json")
        if info is None:
            return False
        found = info.get("config_hash")
        if found != self.identity["config_hash"]:
            raise InputError(
                f"{self.path}: holds another experiment (config or data differ: hash {found}, now "
                f"{self.identity['config_hash']}); give this one another name or run_root, or remove that folder"
            )
        return (self.path / "cases.csv").is_file()

    def start(self) -> None:
        """Write config and hashes first, so that a killed run can be identified."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", self.config.to_yaml())
        write_text(self.path / "run.json", json.dumps(self.identity, indent=2) + "\n")

    def finish(self, *, cases: Rows, nuclei: Rows, info: Mapping[str, Any]) -> None:
        """Write what was scored; cases.csv last, as it says that the run is done."""
        known = read_json(self.path / "run.json") or {}
        write_text(self.path / "run.json", json.dumps(known | dict(info), indent=2) + "\n")
        write_table(self.path / "nuclei.csv", nuclei)
        write_table(self.path / "cases.csv", cases)


def keep(config: Config, split: Rows, results: Path) -> None:
    """Merge a finished run into the study's tables, its own rows replacing older ones."""
    results.mkdir(parents=True, exist_ok=True)
    info = read_json(config.folder / "run.json") or {}
    mine = {"arm": config.arm, "seed": config.seed}
    run = mine | {key: value for key, value in info.items() if not isinstance(value, (dict, list))}
    with file_lock(results / ".lock"):
        write_text(results / "config.yaml", replace(config, arm="all", seed=-1).to_yaml())
        write_text(results / "splits.json", json.dumps(list(split), indent=1) + "\n")
        _merge(results / "runs.csv", mine, [run])
        for name, source in (("curves.csv", "metrics.csv"), ("cases.csv", "cases.csv"), ("nuclei.csv", "nuclei.csv")):
            _merge(results / name, mine, [mine | row for row in read_table(config.folder / source)])


def _merge(path: Path, mine: Mapping[str, Any], rows: Rows) -> None:
    others = [row for row in read_table(path) if (row["arm"], row["seed"]) != (mine["arm"], str(mine["seed"]))]
    joined = sorted([*others, *rows], key=lambda row: (str(row["arm"]), int(row["seed"])))  # stable within a run
    columns = list(dict.fromkeys(key for row in joined for key in row))
    write_table(path, [{key: row.get(key) for key in columns} for row in joined])
