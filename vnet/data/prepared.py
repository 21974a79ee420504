"""What a config's data set turns out to be: checked, divided into a fold, with the preprocessing planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vnet.core.config import Config
from vnet.core.errors import InputError
from vnet.data.checks import Verdict, check_dataset
from vnet.data.dataset import Case, Dataset, open_dataset
from vnet.data.fingerprints import unchanged
from vnet.data.folds import Fold, select_fold
from vnet.data.phantoms.organs import write_phantoms
from vnet.data.phantoms.sheets import SheetKind
from vnet.data.preprocessing import Preprocessing, plan_preprocessing


@dataclass(frozen=True)
class PreparedData:
    """A checked data set and how a run uses it."""

    dataset: Dataset
    content_hash: str
    fold: Fold
    preprocessing: Preprocessing
    stamps: Mapping[str, list[tuple[int, int]]]

    def watched(self, names: tuple[str, ...]) -> Iterator[Case]:
        """The cases, each refused where its files are no longer those that were checked."""
        return unchanged(self.cases(names), self.stamps)

    def cases(self, names: tuple[str, ...]) -> list[Case]:
        by_name = {case.name: case for case in self.dataset.cases}
        return [by_name[name] for name in names]


def open_checked_dataset(config: Config, *, progress: bool = True) -> tuple[Dataset, Verdict]:
    """Open and check the data set of `config`; phantoms are written first where they are asked for and missing.

    Raises:
        InputError: every fault of the data set at once.
    """
    if not config.data.root:
        raise InputError("data.root: no data set named; add --data.root FOLDER (Decathlon or nnU-Net raw layout)")
    root = Path(config.data.root)
    if config.data.phantoms and not root.exists():
        print(f"writing {config.data.phantoms} phantom volumes to {root}", flush=True)
        kind = SheetKind() if config.data.phantom_kind == "sheets" else None
        write_phantoms(root, config.data.phantoms, seed=0, kind=kind)
    dataset = open_dataset(root)
    return dataset, check_dataset(dataset, config.cache_folder, progress=progress)


def prepare_data(config: Config, *, progress: bool = True) -> PreparedData:
    """The data set of `config`, divided, with the preprocessing planned on its training cases.

    Raises:
        InputError: every fault of the data set at once; a fold that does not exist or is empty.
    """
    dataset, verdict = open_checked_dataset(config, progress=progress)
    fold = select_fold(dataset, config.data.fold)
    preprocessing = plan_preprocessing(dataset, verdict, config.data.spacing_mm, cases=fold.train)
    return PreparedData(dataset, verdict.content_hash, fold, preprocessing, verdict.stamps)
