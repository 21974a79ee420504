"""Where the runs of a report come from: study, data set, date, environment, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from vnet.core.config import flatten, load_config
from vnet.core.config.keys import LEFT_OUT
from vnet.core.environment import config_file
from vnet.core.errors import InputError
from vnet.evaluation.study_tables import RunRecord, Study

# options of one run, which `vnet experiment` sets itself
OF_ONE_RUN = ("--arm", "--data.fold", "--seed")


def title(study: Study) -> str:
    """Study, data set and date: that of the last run, or that of the report where no run holds one."""
    names = dict.fromkeys(str(run.config["name"]) for run in study.runs if run.config.get("name"))
    data = dict.fromkeys(str(run.info["data_set"]) for run in study.runs if run.info.get("data_set"))
    dates = [str(run.info["date"]) for run in study.runs if run.info.get("date")]
    date = max(dates) if dates else f"report of {datetime.now(UTC):%Y-%m-%d}"
    on_data = f" on {', '.join(data)}" if data else ""
    return f"{', '.join(names) or 'Comparison'}{on_data}, {date}"


def environments(study: Study) -> list[str]:
    """The different environments of the runs, a line each."""
    lines: dict[str, None] = {}
    for run in study.runs:
        packages = run.info.get("packages") or {}
        parts = [
            f"commit {run.info['commit']}" if run.info.get("commit") else "",
            f"Python {run.info['python']}" if run.info.get("python") else "",
            *(f"{name} {version}" for name, version in packages.items()),
            f"{run.info['processor']}, {run.info.get('cores')} cores" if run.info.get("processor") else "",
        ]
        lines[", ".join(part for part in parts if part)] = None
    return [line for line in lines if line]


def commands(study: Study) -> list[str]:
    """The commands that make the runs and this report again; data folders appear as DATA/NAME."""
    lines: dict[str, None] = {}
    for run in study.runs:
        if run.config.get("name"):
            lines[_experiment(run)] = None
    names = dict.fromkeys(str(run.config["name"]) for run in study.runs if run.config.get("name"))
    return [*lines, *(f"vnet compare {_folder(study, name)}" for name in names)] or ["vnet compare PATH"]


def _experiment(run: RunRecord) -> str:
    """`vnet experiment` with the config file and the options of a run: as noted by the run, else found anew."""
    noted = shlex.split(str(run.info.get("command") or ""))[2:]
    if noted:
        return shlex.join(["vnet", "experiment", *_without_options(noted, OF_ONE_RUN)])
    return shlex.join(["vnet", "experiment", *_found_options(run)])


def _found_options(run: RunRecord) -> list[str]:
    """The shipped config of the study's name and the keys in which the run differs from it."""
    name = str(run.config["name"])
    options = ["--config", f"configs/{name}.yaml"]
    root = (run.config.get("data") or {}).get("root")
    if root:
        options += ["--data.root", f"DATA/{Path(root).name}"]
    due = _shipped_keys(name, run.arm)
    for key, value in flatten(run.config).items():
        left_out = any(key == place or key.startswith(f"{place}.") for place in (*LEFT_OUT, "arm", "seed", "data.fold"))
        if not left_out and key in due and due[key] != value:
            options += [f"--{key}", "null" if value is None else str(value)]
    return options


def _without_options(words: Sequence[str], left_out: Sequence[str]) -> list[str]:
    """A command line without some options and their values, written `--key value` or `--key=value`."""
    kept: list[str] = []
    skip = False
    for word in words:
        option, _, value = word.partition("=")
        if skip or option in left_out:
            skip = option in left_out and not value and not skip
        else:
            kept.append(word)
    return kept


@lru_cache(maxsize=64)
def _shipped_keys(name: str, arm: str) -> dict[str, object]:
    """Dotted keys of the shipped config of a name for an arm; {} where there is none."""
    try:
        return flatten(load_config(["--config", str(config_file(name)), "--arm", arm], check_arms=False).to_dict())
    except InputError:
        return {}


def _folder(study: Study, name: str) -> str:
    """Where the runs of a study lie, without folders of this machine: results/NAME or runs/NAME."""
    kept = any(run.shared for run in study.runs if run.config.get("name") == name)
    return f"{'results' if kept else 'runs'}/{name}"
