"""State of a training on disk: weights, optimiser and progress, enough to continue bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from vnet.core.config import Config
from vnet.core.distributed import gather, on_rank_zero
from vnet.core.errors import RunFault
from vnet.core.runs import Run
from vnet.data.dataset import Dataset
from vnet.data.prepared import PreparedData
from vnet.model.checkpoints import load_weights, read_checkpoint, save_checkpoint, start_from
from vnet.model.segmenter import Segmenter
from vnet.training.progress import Progress


def restore_state(
    run: Run, config: Config, dataset: Dataset, model: Segmenter, optimizer: torch.optim.Optimizer
) -> Progress:
    """Load the last checkpoint of a run, or the weights that `training.init_from` names.

    Returns:
        The progress of the checkpoint; a new one where the run has none.

    Raises:
        InputError: a checkpoint that cannot be read, or is of another network.
        RunFault: the processes find different checkpoints.
    """
    progress = Progress()
    if run.last.is_file():
        state = read_checkpoint(run.last)
        load_weights(model, state, run.last)
        model.max_margin = state.get("max_margin")
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    elif config.training.init_from:
        line = start_from(model, Path(config.training.init_from), dataset)
        print(line, flush=True)
        run.log(line)
    if len(steps := set(gather(progress.step))) > 1:  # each process has read the file itself
        raise RunFault(
            f"{run.last}: processes find steps {sorted(steps)} there; put run_root on a file system that all "
            "machines share"
        )
    return progress


def save_state(
    path: Path,
    run: Run,
    prepared: PreparedData,
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write a checkpoint, on the first process: `restore_state` continues from it, `load_model` predicts with it."""
    dataset = prepared.dataset
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "max_margin": model.max_margin,
        "config_hash": run.config_hash,
        "preprocessing": prepared.preprocessing.to_dict(),
        "structures": list(dataset.structures),
        "in_channels": len(dataset.modalities),
        "ignore": dataset.ignore,
        "training_images": sorted(prepared.image_hashes[name] for name in prepared.fold.train),
    }
    on_rank_zero(lambda: save_checkpoint(path, state))
