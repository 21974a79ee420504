"""Training of the study's runs: the loop, its validations, and the scores of the test images at the end.

A run has a folder. As it ends, it is merged into the study's tables in results/, which a fresh clone can read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from torchvision.models.detection import MaskRCNN

from scripts.nuclei.config import Config
from scripts.nuclei.detector import build_detector, load_checkpoint, save_checkpoint
from scripts.nuclei.images import (
    LEAST_PIXELS,
    Images,
    instances,
    normalised,
    random_crop,
    read_images,
    split_by_likeness,
)
from scripts.nuclei.pictures import draw_mosaic, outlined
from scripts.nuclei.scoring import score_detections, score_images
from vnet.core.environment import environment
from vnet.core.errors import InputError, Preempted, StopRequest, stopping_at_once
from vnet.core.files import RunLock, file_lock, read_json, read_table, write_table, write_text
from vnet.core.hardware import peak_memory_mib
from vnet.core.progress import ProgressBar

Rows = Sequence[Mapping[str, Any]]


class RunFolder:
    """RUN_ROOT/NAME/ARM/seedS: config.yaml, run.json, metrics.csv, cases.csv, nuclei.csv, checkpoints, TensorBoard.

    Args:
        config: of the run.
        data_hash: of the images.
    """

    def __init__(self, config: Config, data_hash: str) -> None:
        self.config, self.path = config, config.folder
        self.identity = {"config_hash": config.hash(data_hash), "data_hash": data_hash}

    def is_done(self) -> bool:
        """Whether the run has been scored.

        Raises:
            InputError: the folder holds another experiment.
        """
        info = read_json(self.path / "run.json")
        if info is None:
            return False
        found = info.get("config_hash")
        if found != self.identity["config_hash"]:
            raise InputError(
                f"{self.path}: holds another experiment (config or data differ: hash {found}, now "
                f"{self.identity['config_hash']}); give this one another name or run_root, or remove that folder"
            )
        return (self.path / "cases.csv").is_file()

    def start(self) -> None:
        """Write config and hashes first, so that a killed run can be identified."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", self.config.to_yaml())
        write_text(self.path / "run.json", json.dumps(self.identity, indent=2) + "\n")

    def finish(self, *, cases: Rows, nuclei: Rows, info: Mapping[str, Any]) -> None:
        """Write what was scored; cases.csv last, as it says that the run is done."""
        known = read_json(self.path / "run.json") or {}
        write_text(self.path / "run.json", json.dumps(known | dict(info), indent=2) + "\n")
        write_table(self.path / "nuclei.csv", nuclei)
        write_table(self.path / "cases.csv", cases)


def keep(config: Config, split: Rows, results: Path) -> None:
    """Merge a finished run into the study's tables, its own rows replacing older ones."""
    results.mkdir(parents=True, exist_ok=True)
    info = read_json(config.folder / "run.json") or {}
    mine = {"arm": config.arm, "seed": config.seed}
    run = mine | {key: value for key, value in info.items() if not isinstance(value, (dict, list))}
    with file_lock(results / ".lock"):
        write_text(results / "config.yaml", replace(config, arm="all", seed=-1).to_yaml())
        write_text(results / "splits.json", json.dumps(list(split), indent=1) + "\n")
        _merge(results / "runs.csv", mine, [run])
        for name, source in (("curves.csv", "metrics.csv"), ("cases.csv", "cases.csv"), ("nuclei.csv", "nuclei.csv")):
            _merge(results / name, mine, [mine | row for row in read_table(config.folder / source)])


def _merge(path: Path, mine: Mapping[str, Any], rows: Rows) -> None:
    others = [row for row in read_table(path) if (row["arm"], row["seed"]) != (mine["arm"], str(mine["seed"]))]
    joined = sorted([*others, *rows], key=lambda row: (str(row["arm"]), int(row["seed"])))  # stable within a run
    columns = list(dict.fromkeys(key for row in joined for key in row))
    write_table(path, [{key: row.get(key) for key in columns} for row in joined])


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


def train_study(config: Config, results: Path) -> None:
    """Train the runs that `config` asks for and merge each into `results` as it ends."""
    with stopping_at_once():
        images = read_images(config.data)
        split = split_by_likeness(
            images, clusters=config.clusters, test=config.test_images, validation=config.validation_images
        )
        for part in ("train", "validation", "test"):
            rows = [row for row in split if row["part"] == part]
            groups = len({row["group"] for row in rows})
            nuclei = sum(int(str(row["nuclei"])) for row in rows)
            print(f"{part}: {len(rows)} images of {groups} groups, {nuclei} nuclei", flush=True)
        for run in config.runs():
            fresh = train_run(run, images)
            keep(run, split, results)
            print(f"{run.folder}: {'done' if fresh else 'was done before'}", flush=True)
        if draw_mosaic(config, images, split, results / "nuclei.png"):
            print(f"picture: {results / 'nuclei.png'}", flush=True)
