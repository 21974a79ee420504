"""Files in, label files out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vnet.cost import set_threads
from vnet.data.volumes import read_image, write_labels
from vnet.errors import InputError
from vnet.inference import Predictor
from vnet.progress import Bar

ENDINGS = (".nii.gz", ".nii")


def list_inputs(path: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name to the files of its image.

    A file is a case; several channels are one 4-D file, or files NAME_0000, NAME_0001, ... as nnU-Net names them.

    Raises:
        InputError: nothing there, or a case with too few channel files.
    """
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.name.endswith(ENDINGS)]
    if not files:
        raise InputError(f"--input {path}: no NIfTI file (.nii.gz or .nii) there")
    cases: dict[str, list[Path]] = {}
    for file in files:
        stem = file.name.removesuffix(".gz").removesuffix(".nii")
        numbered = channels > 1 and stem[-5:-4] == "_" and stem[-4:].isdigit()
        cases.setdefault(stem[:-5] if numbered else stem, []).append(file)
    faults = [
        f"--input {path}: case {name} has {len(found)} channel files, the network reads {channels}"
        for name, found in cases.items()
        if len(found) not in (1, channels)
    ]
    if faults:
        raise InputError(faults)
    return {name: tuple(found) for name, found in cases.items()}


def predict_files(
    run: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "last",
    overrides: Sequence[str] = (),
    device: str = "cpu",
) -> list[Path]:
    """Label the images in `source` with a trained run.

    Returns:
        The files written, NAME.nii.gz with the image's affine and header.

    Raises:
        InputError: what could not be read, after all the others have been labelled.
    """
    source, output = Path(source), Path(output)
    predictor = Predictor(run, checkpoint=checkpoint, overrides=overrides, device=device)
    set_threads(predictor.config.threads)
    channels = predictor.in_channels
    cases = list_inputs(source, channels)
    refuse_overwriting(cases, output)
    output.mkdir(parents=True, exist_ok=True)
    written, faults = [], []
    with Bar("predicting", len(cases)) as bar:
        for name, files in cases.items():
            try:
                volume = read_image(files)
                if len(volume.array) != channels:
                    raise InputError(f"{files[0]}: {len(volume.array)} channels, the network reads {channels}")
                target = output / f"{name}.nii.gz"
                write_labels(target, predictor.predict(volume).labels, volume)
                written.append(target)
            except InputError as error:
                faults += error.faults
            bar.advance(name)
    if faults:
        raise InputError(faults)
    return written


def refuse_overwriting(cases: dict[str, tuple[Path, ...]], output: Path) -> None:
    """The labels of a scan must not take the place of the scan."""
    for name, files in cases.items():
        target = (output / f"{name}.nii.gz").resolve()
        if target in [file.resolve() for file in files]:
            raise InputError(f"--output {output}: {target.name} there is the image itself; name another folder")
