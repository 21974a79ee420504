"""Train one run: the loop, its checkpoints, its validations, and the scores of the test images at the end."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from torchvision.models.detection import MaskRCNN

from scripts.nuclei.config import Config
from scripts.nuclei.detector import build_detector
from scripts.nuclei.evaluation import score_detections, score_images
from scripts.nuclei.images import LEAST_PIXELS, Images, instances, normalised, random_crop, split_by_likeness
from scripts.nuclei.pictures import outlined
from scripts.nuclei.results import RunFolder
from vnet.core.environment import environment
from vnet.core.errors import Preempted, StopRequest
from vnet.core.files import RunLock, read_table, write_bytes, write_table
from vnet.core.hardware import peak_memory_mib
from vnet.core.progress import ProgressBar

WARM_UP = 50  # steps in which the learning rate rises
MOST_NORM = 10.0  # of the gradient; the first steps of a detector are wild


def train_run(config: Config, images: Images) -> bool:
    """Train and score one run, or continue it; False where it was done before.

    Raises:
        InputError: the run's folder holds another experiment, or another process makes this run.
        Preempted: a signal asked to stop; the same call continues.
    """
    folder = RunFolder(config, images.content_hash())
    if folder.is_done():
        return False
    lock = RunLock(folder.path)
    lock.acquire()
    try:
        _train_and_score(config, images, folder)
    finally:
        lock.release()
    return True


def _train_and_score(config: Config, images: Images, folder: RunFolder) -> None:
    """Train from the last checkpoint on, then score the test images; the run's lock is held."""
    folder.start()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    detector = build_detector(config)
    split = split_by_likeness(
        images, clusters=config.clusters, test=config.test_images, validation=config.validation_images
    )
    parts = {
        name: [i for i, row in enumerate(split) if row["part"] == name] for name in ("train", "validation", "test")
    }
    averaged, seconds = fit(config, detector, images, parts, folder.path)
    cases, nuclei = score_images(config, averaged, images, parts["test"])
    pooled = [row for row in cases if row["image"] == "all"]
    folder.finish(
        cases=[row for row in cases if row["image"] != "all"],
        nuclei=nuclei,
        info={"seconds_per_step": seconds, "peak_memory_mib": peak_memory_mib()}
        | {"parameters": sum(weight.numel() for weight in detector.parameters())}
        | {
            f"{key}{'' if row['refined'] else '_unrefined'}": row[key]
            for row in pooled
            for key in ("ap", "boundary_ap", "wide_boundary_ap")
        }
        | environment(),
    )


def fit(
    config: Config, detector: MaskRCNN, images: Images, parts: Mapping[str, Sequence[int]], folder: Path
) -> tuple[MaskRCNN, float]:
    """The training loop, from the last checkpoint on.

    Returns:
        The detector with averaged weights, and the mean seconds a step of this start.
    """
    averaged = AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(config.averaging))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=config.learning_rate, weight_decay=0.01)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    first = load_checkpoint(checkpoint, averaged, detector, optimizer)
    shades = {i: normalised(images.images[i]) for i in [*parts["train"], *parts["validation"]]}
    spent = 0.0
    writer = SummaryWriter(str(folder), purge_step=first)
    with StopRequest() as stop, ProgressBar(f"{config.arm} seed {config.seed}", config.steps, first) as bar:
        for step in range(first, config.steps):
            began = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, (step + 1) / WARM_UP)
            batch, targets = crops(config, images, shades, parts["train"], step)
            # torchvision draws its proposals, and the heads their points, from the global generator
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)[0] >> 1))
            terms = detector.train()(batch, targets)
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), MOST_NORM)
            optimizer.step()
            averaged.update_parameters(detector)
            spent += time.monotonic() - began
            done = step + 1
            if done % config.validate_every == 0 or done == config.steps:
                validate(config, averaged.module, images, shades, parts["validation"], done, terms, folder, writer)
            if done % config.checkpoint_every == 0 or done == config.steps or stop.exit_code is not None:
                save_checkpoint(checkpoint, averaged, detector, optimizer, done)
            bar.advance(f"loss {float(loss.detach()):.3f}")
            if stop.exit_code is not None and done < config.steps:
                raise Preempted(stop.exit_code)
    writer.close()
    return averaged.module, spent / max(config.steps - first, 1)


def crops(
    config: Config, images: Images, shades: Mapping[int, np.ndarray], rows: Sequence[int], step: int
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The batch of a step, a function of seed and step alone: crops (1, S, S) and torchvision's targets."""
    batch, targets = [], []
    for sample in range(config.batch):
        rng = np.random.default_rng([config.seed, step, sample])
        row = int(rng.choice(rows))
        while True:  # a crop whose instances are all slivers is drawn again
            shade, label = random_crop(shades[row], images.labels[row], config.crop, rng)
            masks, boxes = instances(label, LEAST_PIXELS)
            if len(masks):
                break
        batch.append(torch.from_numpy(np.ascontiguousarray(shade))[None])
        targets.append(
            {
                "boxes": torch.from_numpy(boxes),
                "labels": torch.ones(len(boxes), dtype=torch.int64),
                "masks": torch.from_numpy(masks.view(np.uint8)),
            }
        )
    return batch, targets


def validate(
    config: Config,
    detector: MaskRCNN,
    images: Images,
    shades: Mapping[int, np.ndarray],
    rows: Sequence[int],
    step: int,
    terms: Mapping[str, Tensor],
    folder: Path,
    writer: SummaryWriter,
) -> None:
    """A row of metrics.csv, the same scalars and a picture for TensorBoard."""
    labels, width = [images.labels[i] for i in rows], {"boundary_ap": config.boundary_pixels}
    scores, found = score_detections(detector, [shades[i] for i in rows], labels, width)
    row: dict[str, Any] = {"step": step, "ap": scores["ap"][0], "boundary_ap": scores["boundary_ap"][0]}
    row |= {name: float(term.detach()) for name, term in terms.items()}
    for name, value in row.items():
        if name != "step":
            writer.add_scalar(f"{'validation' if 'ap' in name.split('_') else 'loss'}/{name}", value, step)
    picture = outlined(images.images[rows[0]], found[0]["masks"], images.labels[rows[0]])
    writer.add_image("validation/outlines", picture, step, dataformats="HWC")
    path = folder / "metrics.csv"
    known: list[Mapping[str, Any]] = [old for old in read_table(path) if int(old["step"]) < step]
    write_table(path, [*known, row])


def save_checkpoint(
    path: Path, averaged: AveragedModel, detector: MaskRCNN, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Everything that is needed to continue; random numbers are functions of seed and step."""
    parts = {"averaged": averaged, "model": detector, "optimizer": optimizer}
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(
    path: Path,
    averaged: AveragedModel,
    detector: MaskRCNN | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> int:
    """Steps done; 0 where there is no checkpoint."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    averaged.load_state_dict(state["averaged"])
    if detector is not None and optimizer is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
