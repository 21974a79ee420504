"""Finished runs of a study, kept in results/."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml

from vnet.core.errors import InputError
from vnet.core.files import refuse_links, write_bytes

KEPT_FILES = ("config.yaml", "run.json", "metrics.csv", "cases.csv", "refinement.csv", "properties.csv")


KEPT_BYTES = 20 * 2**20


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
