"""Files in, label files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vnet.core.distributed import gather, launch_fabric, rank_info, shard, unshard
from vnet.core.errors import InputError, raise_case_faults
from vnet.core.hardware import set_threads
from vnet.core.progress import ProgressBar
from vnet.data.header_affine import print_findings
from vnet.data.volumes import Volume, read_image, write_labels, write_scaled
from vnet.inference.inputs import list_inputs
from vnet.inference.prediction import Prediction
from vnet.inference.predictor import Predictor

# what can be saved of a case: the end of the file's name
SAVED = {"labels": "", "uncertainty": "_uncertainty", "probabilities": "_probabilities"}


def predict_files(
    runs: str | Path | Sequence[str | Path],
    source: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "last",
    overrides: Sequence[str] = (),
    device: str | None = None,
    save: Sequence[str] = ("labels",),
) -> list[Path]:
    """Label the images in `source` with a trained run, or several averaged; the processes share the images.

    Args:
        save: any of `SAVED`.

    Returns:
        The files written, with the image's affine and header: NAME.nii.gz, NAME_uncertainty.nii.gz (1 where two
        classes tie, 0 where one is sure; a byte a voxel) and NAME_probabilities.nii.gz (4-D, 16 bits a voxel and
        class, along the structures).

    Raises:
        RunFault: some images could not be labelled; the others are.
        InputError: no image could be labelled, or the arguments are at fault.
    """
    source, output = Path(source), Path(output)
    if rank_info().world_size > 1:
        device = str(launch_fabric(device=device or "auto").device)
    predictor = Predictor(runs, checkpoint=checkpoint, overrides=overrides, device=device)
    set_threads(predictor.config.threads)
    channels = predictor.in_channels
    inputs = list_inputs(source, channels)
    print_findings(inputs.findings, notes=True)
    cases = inputs.cases
    targets = {name: {kind: output / f"{name}{SAVED[kind]}.nii.gz" for kind in save} for name in cases}
    refuse_overwriting(cases, targets, output)
    output.mkdir(parents=True, exist_ok=True)
    written: list[list[Path]] = []
    faults: list[str] = []
    mine = shard(list(cases.items()))
    with ProgressBar("predicting", len(mine)) as bar:
        for name, files in mine:
            try:
                predict_case(predictor, files, targets[name])
                written.append(list(targets[name].values()))
            except InputError as error:
                faults += error.faults
                written.append([])
            bar.advance(name)
    groups = unshard(gather(written))
    done = sum(map(bool, groups))
    count = len(cases) + len(inputs.faults)
    print(f"labelled {done} of {count} image{'s' * (count != 1)}", flush=True)
    raise_case_faults([*inputs.faults, *unshard(gather(faults))], done=done)
    return [path for group in groups for path in group]


def predict_case(predictor: Predictor, files: Sequence[Path], targets: Mapping[str, Path]) -> None:
    """Label one image and write what is to be saved.

    Args:
        files: of its channels.
        targets: one of `SAVED` -> file.

    Raises:
        InputError: the image cannot be read, or has other channels than the network reads.
    """
    volume = read_image(files)
    if len(volume.array) != predictor.in_channels:
        raise InputError(f"{files[0]}: {len(volume.array)} channels, the network reads {predictor.in_channels}")
    prediction = predictor.predict(volume, keep_logits="probabilities" in targets)
    for kind, target in targets.items():
        write_prediction(target, kind, prediction, volume)


def write_prediction(path: Path, kind: str, prediction: Prediction, like: Volume) -> None:
    """One of `SAVED` of a case."""
    if kind == "labels":
        write_labels(path, prediction.labels, like)
    elif kind == "uncertainty":
        whole = prediction.uncertainty_volume()
        write_scaled(path, [(0, len(whole), whole[None])], like, dtype=np.uint8, channels=1)
    else:
        largest = np.iinfo(np.uint16).max
        slabs = (
            (first, last, np.rint(part * largest).astype(np.uint16))
            for first, last, part in prediction.probability_slabs()
        )
        write_scaled(path, slabs, like, dtype=np.uint16, channels=len(prediction.coarse))


def refuse_overwriting(cases: dict[str, tuple[Path, ...]], targets: dict[str, dict[str, Path]], output: Path) -> None:
    """What is written must not take the place of a scan, nor of what is written of another."""
    scans = {file.resolve() for files in cases.values() for file in files}
    seen: set[Path] = set()
    for target in (path for paths in targets.values() for path in paths.values()):
        if target.resolve() in scans:
            raise InputError(f"--output {output}: {target.name} there is the image itself; name another folder")
        if target in seen:
            raise InputError(f"--save: two cases would be written to {target.name}; rename one of the images")
        seen.add(target)
