"""A run from its config to its tables, and the scoring of a trained run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from vnet.core.config import Config
from vnet.core.distributed import (
    gather,
    is_rank_zero,
    launch_fabric,
    on_rank_zero,
    reduce_max,
    require_divisible,
    shard,
    unshard,
)
from vnet.core.environment import environment
from vnet.core.errors import InputError, raise_case_faults
from vnet.core.files import RunLock, refuse_links, remove_parts, write_bytes, write_table, write_text
from vnet.core.hardware import keep_freed_memory, set_threads, share_freed_memory
from vnet.core.progress import ProgressBar
from vnet.core.runs import Run, open_run, results_folder
from vnet.data.checks import CheckResult, seen_cases
from vnet.data.dataset import Dataset
from vnet.data.folds import Fold, all_folds
from vnet.data.header_affine import name_some
from vnet.data.prepared import PreparedData, open_checked_dataset, prepare_data
from vnet.evaluation.scores import CASE_COLUMNS, Scores
from vnet.inference.ensemble import tile_size
from vnet.model.checkpoints import Trained, load_model, start_from
from vnet.model.segmenter import build_model, count_multiply_adds, count_parameters, refuse_beyond_memory
from vnet.report.case_pictures import write_pictures
from vnet.training.trainer import Trainer
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
    share_freed_memory()
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
    unreadable: list[str] = []
    with ProgressBar("evaluating", len(shard(fold.val))) as bar:
        validation = validate(
            trained.model.to(fabric.device),
            prepared,
            fold.val,
            config,
            use=lambda predicted, scores: bar.advance(scores.case),
            faults=unreadable if elsewhere else None,
        )
    target = run.folder if own else run.folder / "evaluation" / dataset.root.resolve().name
    refuse_links(target, run.folder)
    if not own:
        on_rank_zero(lambda: write_text(target / "config.yaml", config.to_yaml()))
    faults += unshard(gather(unreadable))
    if validation.scores.cases:
        on_rank_zero(lambda: write_tables(target, validation, config, prepared))
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


def write_tables(folder: Path, validation: Validation, config: Config, prepared: PreparedData) -> None:
    """Write pictures, refinement.csv and cases.csv; the last one marks a run as done."""
    write_pictures(folder / "pictures", validation.pictures, prepared.dataset)
    write_table(folder / "refinement.csv", validation.scores.refinement_rows())
    write_table(folder / "cases.csv", validation.scores.case_rows(config, prepared.groups), columns=CASE_COLUMNS)


def train_run(config: Config, *, command: str = "") -> Run:
    """Train (or continue) the run of `config`, score its validation fold and write its tables.

    Args:
        command: the command line that asked for the run, which reports print; noted in run.json.

    Returns:
        The run, in the folder that holds its tables: its own, or the results of its study where it was done elsewhere.

    Raises:
        InputError: bad data, a run folder that holds another experiment, or another start of the run at work.
        Preempted: a signal asked to stop.
    """
    fabric = launch_fabric(config.training.precision, config.device)
    set_threads(config.threads)
    keep_freed_memory()
    require_divisible(config, fabric.device.type)
    prepared = on_rank_zero(lambda: prepare_data(config))
    run = Run(config.run_folder, config.hash(prepared.content_hash))
    if finished := on_rank_zero(lambda: find_finished(run, config, prepared)):
        return finished
    on_rank_zero(lambda: refuse_start(run, config, prepared.dataset))
    with exclusive(run, config):
        # another process may have made the run since the first look
        if finished := on_rank_zero(lambda: find_finished(run, config, prepared)):
            return finished
        on_rank_zero(lambda: write_identity(run, config, prepared, command))
        trainer = Trainer(config, prepared, run, fabric)
        with closing(trainer.logger):
            trainer.train()
            validation = trainer.evaluate()
        facts = run_facts(trainer, validation.scores)
        on_rank_zero(lambda: run.write_info(**facts))
        on_rank_zero(lambda: write_tables(run.folder, validation, config, prepared))
    return run


def find_finished(run: Run, config: Config, prepared: PreparedData) -> Run | None:
    """The run with the folder of its tables where it is done, else None; says so on stdout.

    Raises:
        InputError: the run folder holds another experiment.
    """
    state = run.state(config, prepared.content_hash)
    if state not in ("done", "kept"):
        return None
    here = run.folder if state == "done" else results_folder(config)
    print(f"{run.folder}: done; its tables are in {here}", flush=True)
    return Run(here, run.config_hash)


@contextmanager
def exclusive(run: Run, config: Config) -> Iterator[None]:
    """Hold the lock of the run's folder, one for all processes of the run.

    Raises:
        InputError: another start of the run holds it, or the folder is a link.
    """
    lock = RunLock(run.folder)

    def acquire() -> None:
        refuse_links(run.folder, Path(config.run_root))
        lock.acquire()

    on_rank_zero(acquire)
    try:
        yield
    finally:
        if is_rank_zero():
            lock.release()


def refuse_start(run: Run, config: Config, dataset: Dataset) -> None:
    """Refuse a network that does not fit the memory, or weights to start from that do not fit the network.

    Raises:
        InputError: before anything is written.
    """
    refuse_beyond_memory(config, in_channels=len(dataset.modalities), classes=len(dataset.structures))
    if config.training.init_from and not run.last.is_file():
        model = build_model(config, in_channels=len(dataset.modalities), classes=len(dataset.structures))
        start_from(model, Path(config.training.init_from), dataset)


def write_identity(run: Run, config: Config, prepared: PreparedData, command: str = "") -> None:
    """Write config, commit and data hash before anything else, so that a killed run can be identified."""
    remove_parts(run.folder)
    data = {"data_set": prepared.dataset.name, "data_hash": prepared.content_hash}
    started = {"date": f"{datetime.now(UTC):%Y-%m-%d}"} | ({"command": command} if command else {})
    if "date" in run.info():  # of the first start; a refused resume leaves run.json as it is
        started = {}
    run.write_info(**environment(), **data, name=config.name, **started)
    write_text(run.folder / "config.yaml", config.to_yaml())
    folds = [{"train": fold.train, "val": fold.val} for fold in all_folds(prepared.dataset, prepared.groups)]
    splits, text = run.folder / "splits.json", json.dumps({"folds": folds}, indent=1) + "\n"
    if run.last.is_file() and splits.is_file() and splits.read_text(encoding="utf-8") != text:
        raise InputError(f"{run.folder}: was begun with other folds; restore {config.data.groups or splits.name}")
    write_text(splits, text)
    properties = prepared.dataset.root / "properties.csv"
    if properties.is_file():  # numbers by case, by which the report groups
        write_bytes(run.folder / properties.name, properties.read_bytes())


def run_facts(trainer: Trainer, scores: Scores) -> dict[str, object]:
    """What run.json holds of a finished run.

    `peak_memory_mib` is the highest of training and its validations, `peak_memory_prediction_mib` that of predicting
    a validation case at the end, both of the process that took most; on the CPU they include libraries and what
    training still holds. `multiply_adds` are those of a forward pass over a tile with the head at its training points,
    `multiply_adds_prediction` with the head at the voxels that it may refine.
    """
    progress, config = trainer.progress, trainer.config
    prediction_mib = reduce_max(scores.peak_memory_mib or 0.0)
    channels = len(trainer.prepared.dataset.modalities)
    volume = torch.zeros(1, channels, *tile_size(config), device=trainer.fabric.device)
    refined = round(config.points.refine_fraction * volume[0, 0].numel()) if config.points.refine else 0
    return {
        "steps": progress.step,
        "dropped_steps": progress.bad_steps,
        "seconds": round(progress.seconds, 3),
        "seconds_per_step": round(float(np.median(progress.step_seconds)), 5),
        "seconds_waiting_per_step": round(float(np.median(progress.wait_seconds)), 5),
        "seconds_per_case": round(scores.seconds_per_case, 5),
        "peak_memory_mib": round(progress.peak_memory_mib, 1),
        "peak_memory_prediction_mib": round(prediction_mib, 1) or None,
        "parameters": count_parameters(trainer.plain),
        "multiply_adds": count_multiply_adds(trainer.plain, volume),
        "multiply_adds_prediction": count_multiply_adds(trainer.plain, volume, num_points=refined),
        "best_step": progress.best_step,
        "processes": trainer.fabric.world_size,
    }
