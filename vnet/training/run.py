"""A run from its config to its tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from vnet.core.config import Config
from vnet.core.distributed import is_rank_zero, launch_fabric, on_rank_zero, reduce_max, require_divisible
from vnet.core.environment import environment
from vnet.core.files import RunLock, refuse_links, remove_parts, write_bytes, write_text
from vnet.core.hardware import keep_freed_memory, set_threads
from vnet.core.runs import Run, results_folder
from vnet.data.dataset import Dataset
from vnet.data.folds import all_folds
from vnet.data.prepared import PreparedData, prepare_data
from vnet.evaluation.scores import Scores
from vnet.inference.ensemble import tile_size
from vnet.model.checkpoints import start_from
from vnet.model.segmenter import build_model, count_multiply_adds, count_parameters, refuse_beyond_memory
from vnet.training.evaluation import write_tables
from vnet.training.trainer import Trainer


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
        on_rank_zero(lambda: write_tables(run.folder, validation, config, prepared.dataset))
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
    folds = [{"train": fold.train, "val": fold.val} for fold in all_folds(prepared.dataset)]
    write_text(run.folder / "splits.json", json.dumps({"folds": folds}, indent=1) + "\n")
    properties = prepared.dataset.root / "properties.csv"
    if properties.is_file():  # numbers by case, by which the report groups
        write_bytes(run.folder / properties.name, properties.read_bytes())


def run_facts(trainer: Trainer, scores: Scores) -> dict[str, object]:
    """What run.json holds of a finished run.

    `peak_memory_mib` is the highest of training and its validations, `peak_memory_prediction_mib` that of predicting
    a validation case at the end, both of the process that took most; on the CPU they include libraries and what
    training still holds.
    """
    progress, config = trainer.progress, trainer.config
    prediction_mib = reduce_max(scores.peak_memory_mib or 0.0)
    channels = len(trainer.prepared.dataset.modalities)
    volume = torch.zeros(1, channels, *tile_size(config), device=trainer.fabric.device)
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
        "best_step": progress.best_step,
        "processes": trainer.fabric.world_size,
    }
