"""The report of `data check`: what a data set holds, what is wrong and what is unusual in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vnet.core.errors import InputError, printable
from vnet.data.checks import examine
from vnet.data.dataset import Dataset, open_dataset
from vnet.data.findings import Facts, find_unusual, shown, structure_volumes
from vnet.data.folds import select_fold
from vnet.data.preprocessing import Preprocessing, describe_rule, grid_faults, plan_preprocessing
from vnet.data.remarks import Finding


@dataclass(frozen=True)
class DatasetReport:
    """A data set read once: what it holds, what is wrong, what is unusual."""

    dataset: Dataset
    facts: Facts
    faults: tuple[str, ...]
    findings: tuple[Finding, ...]
    preprocessing: Preprocessing | None = None

    def print(self, console: Console | None = None) -> None:
        """The summary and the table, on stdout."""
        # off a terminal wide enough that a finding stays on one line for whoever searches the output
        console = console or (Console() if sys.stdout.isatty() else Console(width=400))
        for line in self.summary():
            console.print(line, markup=False, highlight=False)
        if not self.faults and not self.findings:
            console.print("nothing wrong, nothing unusual", markup=False)
            return
        table = Table("", "about", "what")
        for fault in self.faults:
            table.add_row("wrong", *(Text(printable(part)) for part in split_fault(fault)), style="red")
        for finding in self.findings:
            table.add_row("unusual", Text(finding.topic), Text(printable(finding.what)))
        console.print(table)

    def summary(self) -> Iterator[str]:
        """Counts, sizes, spacings, the intensity rule of each channel, and the volume of each structure."""
        channels = self.dataset.modalities
        yield f"{self.dataset.name}: {len(self.facts)} cases read, channels {', '.join(channels)}"
        if self.facts:
            for noun, values in (
                ("voxels", [fact.shape for fact in self.facts.values()]),
                ("spacing mm", [fact.spacing_mm for fact in self.facts.values()]),
            ):
                low, middle, high = (
                    shown(part) for part in (np.min(values, 0), np.median(values, 0), np.max(values, 0))
                )
                yield f"{noun} (z, y, x): median {middle}, from {low} to {high}"
        if self.preprocessing is not None:
            yield from map(describe_rule, range(len(channels)), self.dataset.modalities, self.preprocessing.channels)
        for structure, per_case in structure_volumes(self.dataset, self.facts).items():
            ml = list(per_case.values())
            yield (
                f"{structure}: in {len(ml)} cases, median {np.median(ml):.3g} ml, from {min(ml):.3g} to {max(ml):.3g}"
            )


def split_fault(fault: str) -> tuple[str, str]:
    """(case, rest) of a fault line that names a case, else what it is about."""
    head, _, rest = fault.partition(": ")
    return (head.removeprefix("case "), rest) if head.startswith("case ") else ("data set", fault)


def report_dataset(root: Path | str, *, progress: bool = True) -> DatasetReport:
    """Read every voxel of a data set, keep nothing.

    Raises:
        InputError: dataset.json cannot be used at all.
    """
    dataset = open_dataset(root)
    checked = examine(dataset, None, progress=progress)
    faults = list(checked.faults)
    try:
        # a case with a faulty file is still a case of the splits file
        select_fold(dataset, 0)
    except InputError as error:
        faults += [] if dataset.faults else error.faults
    preprocessing = plan_preprocessing(dataset, checked) if checked.facts else None
    if preprocessing is not None:
        faults += grid_faults(dataset, checked.facts, preprocessing)
    findings = find_unusual(dataset, checked.facts)
    return DatasetReport(dataset, checked.facts, tuple(faults), tuple(findings), preprocessing)
