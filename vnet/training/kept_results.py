"""Finished runs merged into the kept results of their study; `vnet.core.runs` says what those hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vnet.core.config import Config
from vnet.core.errors import InputError
from vnet.core.files import file_lock, read_json, read_table, refuse_links, table_text, write_text
from vnet.core.runs import (
    CONFIG,
    OVERRIDES,
    RUNS,
    KeptRun,
    RunKey,
    read_kept_runs,
    results_folder,
    run_row,
    study_config,
)

MOST_BYTES = 20 * 2**20  # of a study's results, which are committed
# Table of a run -> table of its study.
TABLES = {"cases.csv": "cases.csv", "refinement.csv": "refinement.csv", "metrics.csv": "curves.csv"}
Rows = list[dict[str, Any]]


def keep_run(config: Config, common: Config) -> str:
    """Merge the tables of a finished run into the results of its study.

    Rows of the same run and config hash are replaced; rows of other runs stay. Processes that end together take turns.

    Args:
        config: of the run, whose tables lie in RUN_ROOT.
        common: what the runs of the study have in common: `load_config(..., apply_arm=False)`.

    Returns:
        A line that says where the run is kept, or why it is not.

    Raises:
        InputError: the results of the study would take more than `MOST_BYTES`.
    """
    folder, key = results_folder(config), RunKey.of(config)
    info = read_json(config.run_folder / "run.json") or {}
    refuse_links(folder, folder.parent)
    with file_lock(folder / ".lock"):
        runs = read_kept_runs(folder)
        if refusal := other_experiment(folder, runs, key, info):
            return refusal
        runs[key] = KeptRun(key, info, config.to_dict())
        files = merged_files(folder, config.run_folder, runs, key, study_config(common))
        if sum(len(text.encode()) for text in files.values()) > MOST_BYTES:
            raise InputError(f"{folder}: would be over {MOST_BYTES >> 20} MiB; set study.keep: false")
        for name, text in files.items():
            write_text(folder / name, text)
    return f"kept in {folder}"


def other_experiment(folder: Path, runs: Mapping[RunKey, KeptRun], key: RunKey, info: Mapping[str, Any]) -> str:
    """Why a run cannot join the results in `folder`; empty where it can.

    Rows of another config or data set are never replaced: they may be committed, and a report must not mix both.
    """
    own = runs.get(key)
    if own is not None and own.config_hash != info.get("config_hash"):
        reason = f"holds {key.arm} fold {key.fold} seed {key.seed} of another config"
    elif any(run.info.get("data_hash") != info.get("data_hash") for run in runs.values()):
        reason = "holds runs on other data"
    else:
        return ""
    return f"{folder}: {reason}, and stays as it is; name the study anew, or remove that folder and run it again"


def merged_files(
    folder: Path, run_folder: Path, runs: Mapping[RunKey, KeptRun], key: RunKey, common: Mapping[str, Any]
) -> dict[str, str]:
    """The texts of the files of the results once the run `key` is merged in.

    runs.csv comes last, because a row there marks a run as done.

    Args:
        folder: of the results.
        run_folder: of the run `key`.
        runs: every kept run, `key` included.
        common: the keys of config.yaml.
    """
    files = {CONFIG: yaml.safe_dump(dict(common), sort_keys=False)}
    for name in ("splits.json", "properties.csv"):  # of the data set, so equal for all runs
        if (run_folder / name).is_file():
            files[name] = (run_folder / name).read_text(encoding="utf-8")
    for own, shared in TABLES.items():
        rows = merge_rows(read_table(folder / shared), read_table(run_folder / own), key)
        if rows:
            files[shared] = table_text(rows, columns_of(rows))
    rows = [run_row(runs[key], common) for key in sorted(runs)]
    columns = [column for column in columns_of(rows) if column != OVERRIDES]
    return files | {RUNS: table_text(rows, [*columns, OVERRIDES])}


def merge_rows(kept: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]], key: RunKey) -> Rows:
    """Rows of a study sorted by run, with those of the run `key` replaced by its `own` in their order."""
    key_cells = {"arm": key.arm, "fold": key.fold, "seed": str(key.seed)}
    others = [dict(row) for row in kept if key_cells.items() - row.items()]
    rows = [*others, *(key_cells | dict(row) for row in own)]
    return sorted(rows, key=lambda row: (row["arm"], row["fold"], int(row["seed"])))


def columns_of(rows: Rows) -> list[str]:
    """Every column of the rows, in the order of its first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))
