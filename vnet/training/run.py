"""A run from its config to its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vnet.core.config import Config
from vnet.core.distributed import gather, launch_fabric, on_rank_zero, reduce_max, require_divisible, shard
from vnet.core.environment import environment
from vnet.core.errors import InputError
from vnet.core.files import refuse_links, sweep, write_bytes, write_text
from vnet.core.hardware import keep_memory, peak_memory_mib, reset_peak_memory, set_threads
from vnet.core.progress import Bar
from vnet.core.runs import Run, finished_hash, open_run
from vnet.core.tables import write_table
from vnet.data.dataset import Dataset
from vnet.data.folds import Fold
from vnet.data.prepared import PreparedData, open_checked_dataset, prepare_data
from vnet.evaluation.scores import CASE_COLUMNS, Evaluation, evaluate_cases, merge_evaluations
from vnet.inference.segment import tile_size
from vnet.model.checkpoints import load_model, start_from
from vnet.model.profiling import count_multiply_adds, count_parameters
from vnet.model.segmenter import Segmenter, build_model, refuse_beyond_memory
from vnet.report.case_pictures import write_pictures
from vnet.training.trainer import Trainer


def train_run(config: Config) -> Run:
    """Train (or continue) the run of `config`, score its validation fold, and leave its tables.

    Returns:
        The folder of the tables: the run's, or that in results/ of a run that was done elsewhere.

    Raises:
        InputError: bad data, or a run folder that holds another experiment.
        Preempted: a signal asked to stop.
    """
    fabric = launch_fabric(config.training.precision)
    set_threads(config.threads)
    keep_memory()
    require_divisible(config, fabric.device.type)
    prepared = on_rank_zero(lambda: prepare_data(config))
    run = Run(config.run_folder, config.hash(prepared.content_hash))
    if on_rank_zero(lambda: run.state(config.results_folder)) == "done":
        here = run.folder if finished_hash(run.folder) == run.config_hash else config.results_folder
        print(f"{run.folder}: done; its tables are in {here}", flush=True)
        return Run(here, run.config_hash)
    dataset = prepared.dataset
    on_rank_zero(lambda: refuse_start(run, config, dataset))
    on_rank_zero(lambda: begin(run, config, prepared))
    trainer = Trainer(config, prepared, run, fabric)
    trainer.train()
    model = load_model(run, config, "last").model.to(fabric.device)
    write_results(run, config, prepared, trainer, model)
    return run


def refuse_start(run: Run, config: Config, dataset: Dataset) -> None:
    """What does not fit the memory, or weights to start from that do not fit, before anything is written."""
    refuse_beyond_memory(config, in_channels=len(dataset.modalities), classes=len(dataset.structures))
    if config.training.init_from and not run.last.is_file():
        model = build_model(config, in_channels=len(dataset.modalities), classes=len(dataset.structures))
        start_from(model, Path(config.training.init_from), dataset)


def begin(run: Run, config: Config, prepared: PreparedData) -> None:
    """Leave what identifies the run before anything else is written."""
    refuse_links(run.folder, Path(config.run_root))
    run.folder.mkdir(parents=True, exist_ok=True)
    sweep(run.folder)
    run.write_info(**environment(), data_set=prepared.dataset.name, data_hash=prepared.content_hash, name=config.name)
    write_text(run.folder / "config.yaml", config.to_yaml())
    properties = prepared.dataset.root / "properties.csv"
    if properties.is_file():  # numbers by case, by which the report groups
        write_bytes(run.folder / properties.name, properties.read_bytes())


def write_results(run: Run, config: Config, prepared: PreparedData, trainer: Trainer, model: Segmenter) -> None:
    """Score the validation fold with the last checkpoint; cases.csv, written last, marks the run as done."""
    training_mib = reduce_max(peak_memory_mib())  # of the process that took most
    told_apart = reset_peak_memory()
    scored = score(model, prepared.fold.val, prepared, config)
    prediction_mib = reduce_max(peak_memory_mib())
    device = next(model.parameters()).device
    volume = torch.zeros(1, len(prepared.dataset.modalities), *tile_size(config), device=device)
    progress = trainer.progress
    facts = {
        "steps": progress.step,
        "dropped_steps": progress.bad_steps,
        "seconds": round(progress.seconds, 3),
        "seconds_per_step": round(float(np.median(progress.step_seconds)), 5),
        "seconds_waiting_per_step": round(float(np.median(progress.wait_seconds)), 5),
        "seconds_per_case": round(scored.seconds_per_case, 5),
        "peak_memory_mib": round(training_mib, 1),
        "peak_memory_prediction_mib": round(prediction_mib, 1) if told_apart else None,
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, volume),
        "best_step": progress.best_step,
        "processes": trainer.fabric.world_size,
    }
    on_rank_zero(lambda: run.write_info(**facts))
    on_rank_zero(lambda: write_tables(run.folder, scored, prepared.dataset))


def score(model: Segmenter, names: tuple[str, ...], prepared: PreparedData, config: Config) -> Evaluation:
    """`evaluate_cases`, shared by the processes, with a progress bar (of the first one's share)."""
    mine = tuple(shard(names))
    with Bar("evaluating", len(mine)) as bar:
        scored = evaluate_cases(
            model,
            prepared.unchanged_cases(mine),
            prepared.preprocessing,
            config,
            structures=prepared.dataset.structures,
            ignore=prepared.dataset.ignore,
            shown=bar.advance,
        )
    return merge_evaluations(gather(scored), names)


def write_tables(folder: Path, scored: Evaluation, dataset: Dataset) -> None:
    write_pictures(folder / "pictures", scored.pictures, dataset)
    write_table(folder / "refinement.csv", scored.refinement)
    write_table(folder / "cases.csv", scored.cases, columns=CASE_COLUMNS)


def evaluate_run(folder: str | Path, overrides: Sequence[str], *, checkpoint: str = "last") -> Path:
    """Score a trained run: its validation fold into its own tables, anything else into RUN/evaluation/NAME/.

    Anything else is every labelled case of another data set (`--data.root`), another checkpoint, or other keys of
    prediction than the run's.

    Returns:
        The folder of the tables.

    Raises:
        InputError: not a run, a checkpoint that is missing, a data set of other channels or structures, or cases that
            the run was trained on.
    """
    run, config = open_run(folder, overrides)
    trained_fold = open_run(folder)[1].data.fold
    if config.data.fold != trained_fold:
        raise InputError(
            f"data.fold: the run was trained for fold {trained_fold}; cases of fold {config.data.fold} it has seen: "
            "leave the key out"
        )
    fabric = launch_fabric()
    set_threads(config.threads)
    trained = load_model(run, config, checkpoint)
    dataset, checked = on_rank_zero(lambda: open_checked_dataset(config))
    trained.require_same_task(dataset)
    own = checkpoint == "last" and config.hash(checked.content_hash) == run.config_hash
    if checked.content_hash == run.info().get("data_hash"):
        fold = on_rank_zero(lambda: prepare_data(config)).fold
    else:
        fold = Fold(train=(), val=tuple(case.name for case in dataset.cases if case.label is not None))
    if not fold.val:
        raise InputError(
            f"{run.folder}: trained on every case (data.fold: all), none is left to score; name another data set with "
            "--data.root"
        )
    if own and "steps" not in run.info():
        raise InputError(f"{run.folder}: its training has not ended; run the training command again")
    prepared = PreparedData(dataset, checked.content_hash, fold, trained.preprocessing, checked.fingerprints)
    scored = score(trained.model.to(fabric.device), fold.val, prepared, config)
    target = run.folder if own else run.folder / "evaluation" / dataset.root.resolve().name
    refuse_links(target, run.folder)
    if not own:
        on_rank_zero(lambda: write_text(target / "config.yaml", config.to_yaml()))
    on_rank_zero(lambda: write_tables(target, scored, dataset))
    return target
