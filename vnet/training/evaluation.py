"""Score a trained run, and write the tables and pictures of a scored fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vnet.core.config import Config
from vnet.core.distributed import gather, launch_fabric, on_rank_zero, shard, unshard
from vnet.core.errors import InputError, raise_case_faults
from vnet.core.files import refuse_links, write_table, write_text
from vnet.core.hardware import set_threads
from vnet.core.progress import ProgressBar
from vnet.core.runs import open_run
from vnet.data.checks import CheckResult, seen_cases
from vnet.data.dataset import Dataset
from vnet.data.folds import Fold
from vnet.data.header_affine import name_some
from vnet.data.prepared import PreparedData, open_checked_dataset, prepare_data
from vnet.evaluation.scores import CASE_COLUMNS
from vnet.model.checkpoints import Trained, load_model
from vnet.report.case_pictures import write_pictures
from vnet.training.validation import Validation, validate


def evaluate_run(
    folder: str | Path, overrides: Sequence[str], *, checkpoint: str = "last", device: str = "auto"
) -> Path:
    """Score a trained run: its validation fold into its own tables, anything else into RUN/evaluation/NAME/.

    Anything else is every labelled case of another data set (`--data.root`), another checkpoint, or other keys of
    prediction than the run's.

    A case of another data set that cannot be read is left out, and raised once the tables of the others are written.

    Returns:
        The folder of the tables.

    Raises:
        RunFault: some cases could not be read; the tables hold the others.
        InputError: not a run, a checkpoint that is missing, a data set of other channels or structures, cases that
            the run was trained on, or no case that can be read.
    """
    run, config = open_run(folder, overrides)
    own_config = open_run(folder)[1]
    if config.data.fold != own_config.data.fold:
        raise InputError(
            f"data.fold: the run was trained for fold {own_config.data.fold}; cases of fold {config.data.fold} it has "
            "seen: leave the key out"
        )
    fabric = launch_fabric(device=device)
    set_threads(config.threads)
    trained = load_model(run, config, checkpoint)
    elsewhere = config.data.root != own_config.data.root
    dataset, checked = on_rank_zero(lambda: open_checked_dataset(config, leave_out=elsewhere))
    faults = list(checked.faults)
    trained.require_same_task(dataset)
    own = checkpoint == "last" and config.hash(checked.content_hash) == run.config_hash
    if checked.content_hash == run.info().get("data_hash"):
        fold = on_rank_zero(lambda: prepare_data(config)).fold
    else:
        sound = [case.name for case in dataset.cases if case.label is not None and case.name in checked.facts]
        fold = Fold(train=(), val=tuple(sound))
    if not fold.val:
        raise InputError(
            f"{run.folder}: trained on every case (data.fold: all), none is left to score; name another data set with "
            "--data.root"
        )
    if own and "steps" not in run.info():
        raise InputError(f"{run.folder}: its training has not ended; run the training command again")
    warn_of_seen_cases(checked, fold, trained)
    prepared = PreparedData(dataset, checked.content_hash, fold, trained.preprocessing, checked.fingerprints)
    unread: list[str] = []
    with ProgressBar("evaluating", len(shard(fold.val))) as bar:
        validation = validate(
            trained.model.to(fabric.device),
            prepared,
            fold.val,
            config,
            use=lambda predicted, scores: bar.advance(scores.case),
            faults=unread if elsewhere else None,
        )
    target = run.folder if own else run.folder / "evaluation" / dataset.root.resolve().name
    refuse_links(target, run.folder)
    if not own:
        on_rank_zero(lambda: write_text(target / "config.yaml", config.to_yaml()))
    faults += unshard(gather(unread))
    if validation.scores.cases:
        on_rank_zero(lambda: write_tables(target, validation, config, dataset))
    raise_case_faults(faults, done=len(validation.scores.cases))
    return target


def warn_of_seen_cases(checked: CheckResult, fold: Fold, trained: Trained) -> None:
    """Print the cases whose images the run was trained on, under whatever name and along whatever axes."""
    seen = seen_cases({name: checked.facts[name] for name in fold.val}, trained.training_images)
    if seen:
        print(
            f"warning: the run was trained on {len(seen)} of {len(fold.val)} cases (the same image): "
            f"{name_some(seen)}; their scores say nothing of new cases",
            flush=True,
        )


def write_tables(folder: Path, validation: Validation, config: Config, dataset: Dataset) -> None:
    """Write pictures, refinement.csv and cases.csv; the last one marks a run as done."""
    write_pictures(folder / "pictures", validation.pictures, dataset)
    write_table(folder / "refinement.csv", validation.scores.refinement_rows())
    write_table(folder / "cases.csv", validation.scores.case_rows(config), columns=CASE_COLUMNS)
