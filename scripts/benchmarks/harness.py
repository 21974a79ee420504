"""The harness of the benchmarks: turns, clocks, measurements in fresh processes, rows as CSV and as a chart."""

from __future__ import annotations

import csv
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vnet.core.errors import InputError

Row = dict[str, Any]


def chosen_names(known: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The wanted names in the order of the known ones; all names where none is wanted.

    Raises:
        InputError: a name that is not known.
    """
    strange = [name for name in wanted if name not in known]
    if strange:
        raise InputError([f"--case {name}: no such row; one of {'; '.join(known)}" for name in strange])
    return [name for name in known if not wanted or name in wanted]


def take_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side by turn, after one uncounted turn; a change of the machine's speed meets all sides."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """`function` with a clock: the seconds of each call, also of one that raises, are appended to `seconds`."""

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    return measured


def paired(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Median over the turns of the ratio within a turn: a machine that slows down slows both sides."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))


ROOT = Path(__file__).resolve().parents[2]


def call(module: str, function: str, **words: Any) -> Mapping[str, Any]:
    """The mapping that `function(**words)` of `scripts.benchmarks.MODULE` returns in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is what it wrote on stderr.
    """
    code = (
        f"import json, sys; from scripts.benchmarks.{module} import {function}; "
        f"print(json.dumps({function}(**json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def columns(rows: list[Row]) -> list[str]:
    """The keys of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def read_csv(path: Path) -> list[Row]:
    """The rows of a file that `write_csv` wrote, numbers as numbers, without empty cells."""
    with path.open(newline="") as file:
        return [{key: _value(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def merged(old: list[Row], new: list[Row], key: str = "case") -> list[Row]:
    """The old rows, with those measured again replaced and new ones at the end."""
    fresh = {row[key]: row for row in new}
    return [fresh.pop(row.get(key), row) for row in old] + list(fresh.values())


def keep_rows(rows: list[Row], table: Path, benchmark: str, *, part: bool = False) -> list[Row]:
    """All rows of a benchmark, after they took the place of its old ones in a table that others share.

    Args:
        table: CSV whose column `benchmark` says whose a row is.
        part: only some rows were measured again; the others stay.
    """
    kept = read_csv(table) if table.exists() else []
    own = [
        {key: value for key, value in row.items() if key != "benchmark"}
        for row in kept
        if row["benchmark"] == benchmark
    ]
    rows = merged(own, rows) if part else rows
    others = [row for row in kept if row["benchmark"] != benchmark]
    write_csv(others + [{"benchmark": benchmark, **row} for row in rows], table)
    return rows


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns(rows))
        writer.writeheader()
        writer.writerows(rows)


def draw_seconds(rows: list[Row], path: Path, title: str) -> None:
    """Draw seconds on a logarithmic axis: a group of bars a row, a colour for each column that ends in `_s`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if "seconds" in row or any(key.endswith("_s") for key in row)]
    sides = [key for key in columns(rows) if key.endswith("_s") or key == "seconds"]
    figure = Figure(figsize=(8, 1 + 0.16 * len(rows) * (len(sides) + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    thickness = 0.85 / len(sides)
    for place, side in enumerate(sides):
        at = [i + (place - (len(sides) - 1) / 2) * thickness for i, row in enumerate(rows) if row.get(side)]
        axes.barh(at, [row[side] for row in rows if row.get(side)], thickness, label=side.removesuffix("_s"))
    axes.set_yticks(range(len(rows)), [name_of(row) for row in rows])
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="seconds", title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def name_of(row: Row) -> str:
    """The name of a row: its entries up to the first measurement."""
    words = []
    for key, value in row.items():
        if key.endswith("_s") or key == "seconds":
            break
        words.append(f"{value}" if isinstance(value, str) else f"{key} {value}")
    return words[0] if len(words) > 1 and isinstance(row[next(iter(row))], str) else ", ".join(words)
