"""The data set of a config: checked, split into folds, with its preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vnet.core.config import Config
from vnet.core.environment import groups_file
from vnet.core.errors import InputError
from vnet.data.checks import CheckResult, check_dataset, examine
from vnet.data.dataset import Case, Dataset, Fingerprint, open_dataset, require_dataset, unchanged
from vnet.data.dataset_report import find_warnings
from vnet.data.folds import Fold, read_groups, select_fold
from vnet.data.header_affine import print_findings
from vnet.data.phantoms import SheetKind, write_phantoms
from vnet.data.preprocessing import Preprocessing, grid_faults, plan_preprocessing


@dataclass(frozen=True)
class PreparedData:
    """A checked data set and how a run uses it.

    Attributes:
        dataset: the cases, structures and channels.
        content_hash: of everything that a training reads (`vnet.data.checks.content_hash`).
        fold: names of the training and validation cases.
        preprocessing: planned on the training cases of the fold.
        fingerprints: case name -> size and time of its files when they were checked.
        image_hashes: case name -> content hash of its image, by which a copy of a case is known again.
        groups: case name -> subject, of `data.groups`; empty without.
    """

    dataset: Dataset
    content_hash: str
    fold: Fold
    preprocessing: Preprocessing
    fingerprints: Mapping[str, Fingerprint]
    image_hashes: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)

    def unchanged_cases(self, names: tuple[str, ...]) -> Iterator[Case]:
        """Yield the named cases; raises `RunFault` at a case whose files changed since they were checked."""
        return unchanged(self.cases(names), self.fingerprints)

    def cases(self, names: tuple[str, ...]) -> list[Case]:
        """The named cases, in the order of `names`."""
        by_name = {case.name: case for case in self.dataset.cases}
        return [by_name[name] for name in names]


def open_checked_dataset(
    config: Config, *, progress: bool = True, leave_out: bool = False
) -> tuple[Dataset, CheckResult]:
    """Open and check the data set of `config`, and print its warnings.

    Missing phantoms are written first where the config asks for them.

    Args:
        leave_out: leave cases with faults out, and their faults in the result.

    Raises:
        InputError: every fault of the data set at once; with `leave_out` only where no case is without fault.
    """
    root = require_dataset(config)
    if config.data.phantoms and not root.exists():
        print(f"writing {config.data.phantoms} phantom volumes to {root}", flush=True)
        kind = SheetKind() if config.data.phantom_kind == "sheets" else None
        write_phantoms(root, config.data.phantoms, seed=0, kind=kind)
    dataset = open_dataset(root)
    check = examine if leave_out else check_dataset
    checked = check(dataset, config.cache_folder, progress=progress)
    if not checked.facts:
        raise InputError(checked.faults)
    print_findings(find_warnings(dataset, checked.facts))
    return dataset, checked


def prepare_data(config: Config, *, progress: bool = True) -> PreparedData:
    """The data set of `config`, checked and split, with the preprocessing planned on its training cases.

    Raises:
        InputError: every fault of the data set at once; a fold that does not exist or is empty.
    """
    dataset, checked = open_checked_dataset(config, progress=progress)
    groups = read_groups(groups_file(config.data.groups)) if config.data.groups else {}
    fold = select_fold(dataset, config.data.fold, groups)
    preprocessing = plan_preprocessing(dataset, checked, config.data.spacing_mm, cases=fold.train)
    used = {name: checked.facts[name] for name in (*fold.train, *fold.val)}
    if faults := grid_faults(dataset, used, preprocessing):
        raise InputError(faults)
    hashes = {name: fact.image_hash for name, fact in checked.facts.items()}
    return PreparedData(dataset, checked.content_hash, fold, preprocessing, checked.fingerprints, hashes, groups)
