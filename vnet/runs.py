"""A run's folder: what it holds, and whether it is done.

RUN_ROOT/NAME/ARM/foldF_seedS holds config.yaml, run.json, log.txt, metrics.csv, cases.csv, refinement.csv,
pictures/{worst,median,best}_CASE.png, checkpoints/{last,best}.ckpt and TensorBoard events.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from vnet.config import Config, load_config
from vnet.errors import InputError
from vnet.files import is_part, naming, refuse_links, write_bytes, write_text

KEPT_FILES = ("config.yaml", "run.json", "metrics.csv", "cases.csv", "refinement.csv", "properties.csv")
KEPT_BYTES = 20 * 2**20
PACKAGES = ("torch", "monai", "lightning-fabric", "numpy", "numba", "nibabel")


@dataclass(frozen=True)
class Run:
    """A run folder and the config hash that it stands for."""

    folder: Path
    config_hash: str

    def state(self, results: Path) -> str:
        """`done`, `started` or `new`.

        Raises:
            InputError: the folder holds another experiment.
        """
        if finished_hash(self.folder) == self.config_hash or finished_hash(results) == self.config_hash:
            return "done"
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


def open_run(folder: str | Path, overrides: Sequence[str] = ()) -> tuple[Run, Config]:
    """The run in `folder` and its resolved config, with `--key value` overrides.

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
    return Run(folder, config_hash), load_config(overrides, base=nested)


def keep(run_folder: Path, results: Path) -> None:
    """Copy a finished run's small files to `results`, cases.csv last, as it marks the run as done.

    Pictures come along while all that is kept of the study stays within 20 MB. In the copy of the config the data
    set is `DATA/NAME`: where it lies is the machine's own business.

    Args:
        results: STUDY/ARM/foldF_seedS below a folder of results.

    Raises:
        InputError: the tables are over 20 MB.
    """
    refuse_links(results, Path(results.parts[0]))
    files = [run_folder / name for name in KEPT_FILES if (run_folder / name).is_file()]
    pictures = sorted(file for file in (run_folder / "pictures").glob("*") if file.suffix in (".png", ".md"))
    if total_bytes(files) > KEPT_BYTES:
        raise InputError(f"{run_folder}: its tables are over 20 MB; set study.keep: false")
    shutil.rmtree(results / "pictures", ignore_errors=True)
    before = [file for file in results.parent.parent.rglob("*") if file.is_file()]
    if total_bytes([*before, *files, *pictures]) <= KEPT_BYTES:
        for file in pictures:
            write_bytes(results / "pictures" / file.name, file.read_bytes())
    for file in sorted(files, key=lambda file: file.name == "cases.csv"):
        data = file.read_bytes()
        write_bytes(results / file.name, without_places(data) if file.name == "config.yaml" else data)


def total_bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def without_places(config: bytes) -> bytes:
    nested = yaml.safe_load(config)
    nested["data"] |= {"root": f"DATA/{Path(nested['data']['root']).name}", "cache": None}
    nested["run_root"] = "runs"
    return yaml.safe_dump(nested, sort_keys=False).encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where the file is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Rows of equal keys as CSV; None is a blank, true and false are written small.

    Args:
        columns: the head of a table without rows.
    """
    rows = list(rows)
    text = StringIO()
    head = list(rows[0]) if rows else columns
    if head:
        writer = csv.DictWriter(text, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    # six digits after the point: a thousandth of what a metric's noise is, and files that diff well
    return f"{value:.6f}" if isinstance(value, float) else value


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, [] where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def environment() -> dict[str, Any]:
    """What a number depends on, without the name of the machine."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """Commit of the code, `+` where tracked files differ from it, empty outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
