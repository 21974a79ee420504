"""Seconds and memory from an nnU-Net model's logits to label files: nnU-Net's own export against `Predictor`.

Two cases of the same logits go through `predict_from_data_iterator`, which starts its workers, turns logits into labels
on the image's grid and writes the files. nnU-Net's side resamples with its default (`default`) or with its torch
function (`torch`), in a pool of one or two processes; ours renders in this process and writes in one or two threads.
Memory is the peak of all processes together, beyond that of the idle program with the logits of a case.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.harness import Row, call, chosen_names
from scripts.benchmarks.render import Case as Logits
from scripts.benchmarks.render import synthetic_logits
from vnet.core.errors import InputError

CASES = 2
SIDES = {"default": ("default", False), "torch": ("torch", False), "ours": ("default", True)}


@dataclass(frozen=True)
class Size:
    """Logits of `classes` on a grid of `source` voxels, labels on one of `target`; both (z, y, x)."""

    classes: int
    source: tuple[int, int, int]
    target: tuple[int, int, int]
    ours_only: bool = False  # nnU-Net's tensor of classes x voxels does not fit the machine

    def __str__(self) -> str:
        source, target = ("x".join(map(str, size)) for size in (self.source, self.target))
        return f"{self.classes} classes, {source} to {target}"

    @property
    def dense_gib(self) -> float:
        """Size of nnU-Net's resampled tensor in half precision, of which its default export holds one a worker."""
        return self.classes * float(np.prod(self.target)) * 2 / 2**30


QUICK = (Size(5, (20, 24, 28), (40, 48, 56)),)  # so small that its seconds are those of starting the workers
SIZES = (
    *QUICK,
    Size(25, (128, 128, 128), (256, 256, 256)),
    Size(118, (100, 100, 100), (160, 160, 160)),
    Size(118, (160, 160, 160), (480, 512, 512), ours_only=True),
)


class PeakMemory:
    """While entered, the highest resident memory in MiB of this process and its children, sampled every 20 ms."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = resident_mib()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.ended.wait(0.02):
            self.peak = max(self.peak, resident_mib())

    @property
    def added_mib(self) -> float:
        return self.peak - self.before


def resident_mib() -> float:
    """Resident memory of this process and all below it (Linux); shared pages count in each."""
    parents, resident = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            found = dict(re.findall(r"^(PPid|VmRSS):\s*(\d+)", status.read_text(), re.MULTILINE))
        except OSError:  # it has ended
            continue
        pid = int(status.parent.name)
        parents[pid], resident[pid] = int(found["PPid"]), int(found.get("VmRSS", 0))
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(resident.get(pid, 0) for pid in below) / 2**10


def model_parts(size: Size, kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Plans, dataset.json and the properties of a case, reduced to what the export reads."""
    function = {"default": "resample_data_or_seg_to_shape", "torch": "resample_torch_fornnunet"}[kind]
    order = {"default": {"order": 1, "order_z": 0}, "torch": {}}[kind]
    configuration = {
        "spacing": [1.0, 1.0, 1.0],
        "architecture": {},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "force_separate_z": None, **order},
    }
    plans = {
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
    }
    names = {"background": 0} | {f"organ {i}": i for i in range(1, size.classes)}
    dataset = {"labels": names, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    spacing = [source / target for source, target in zip(size.source, size.target, strict=True)]
    geometry = {"spacing": tuple(reversed(spacing)), "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}
    properties = {
        "spacing": spacing,
        "shape_after_cropping_and_before_resampling": size.target,
        "shape_before_cropping": size.target,
        "bbox_used_for_cropping": [[0, n] for n in size.target],
        "sitk_stuff": geometry,
    }
    return plans, dataset, properties


def export(side: str, workers: int, **numbers: Any) -> Row:
    """One side in this process: seconds of two cases and added memory."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from pointrend.integrations.nnunet import Predictor

    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in numbers.items()}
    size = Size(**values)
    kind, is_ours = SIDES[side]
    plans, dataset, properties = model_parts(size, kind)
    manager = PlansManager(plans)
    predictor = (Predictor if is_ours else nnUNetPredictor)(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    planned = manager.get_configuration("3d_fullres")
    predictor.manual_initialization(torch.nn.Identity(), manager, planned, None, dataset, "", None)
    logits = torch.from_numpy(synthetic_logits(Logits(size.classes, size.source, size.target))[0]).half()
    predictor.predict_logits_from_preprocessed_data = lambda data: logits
    if is_ours:  # compiled before the clock starts, as nnU-Net's libraries are
        predictor.labels(logits[:, :4, :4, :4], properties)
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            {"data": torch.zeros(1), "data_properties": properties, "ofile": str(Path(folder, name))}
            for name in "ab"[:CASES]
        ]
        with PeakMemory() as memory:
            start = time.perf_counter()
            predictor.predict_from_data_iterator(cases, num_processes_segmentation_export=workers)
            seconds = time.perf_counter() - start
    return {"seconds": round(seconds, 2), "added_mib": round(memory.added_mib)}


def measure(size: Size) -> Row:
    """One row: seconds and MiB of each side with one worker and with two; blank where it does not fit."""
    row: Row = {
        "case": str(size),
        "nnunet_tensor_gib": round(size.dense_gib, 1),
        "nnunet_fits": "no" if size.ours_only else "yes",
    }
    for side in SIDES:
        for workers in (1, 2):
            if size.ours_only and side != "ours":
                continue
            found = call("nnunet_export", "export", side=side, workers=workers, **vars(size))
            row |= {f"{side}_{workers}_s": found["seconds"], f"{side}_{workers}_mib": found["added_mib"]}
    return row


def run(quick: bool = False, cases: Sequence[str] = ()) -> list[Row]:
    """Rows of the table; `quick` takes one small size, `cases` some of them by name.

    Raises:
        InputError: nnU-Net is not installed, or a name that is not known.
    """
    from importlib.util import find_spec

    if find_spec("nnunetv2") is None:
        raise InputError("nnU-Net is not installed; pip install '.[vnet,nnunet,dev]'")
    sizes = {str(size): size for size in (QUICK if quick else SIZES)}
    return [measure(sizes[name]) for name in chosen_names(list(sizes), cases)]
