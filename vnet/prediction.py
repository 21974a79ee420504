"""Files in, label files out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vnet.cost import set_threads
from vnet.data.dataset import ENDINGS, stem
from vnet.data.volumes import read_image, write_labels
from vnet.errors import InputError
from vnet.inference import Predictor
from vnet.progress import Bar


def list_inputs(path: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name to the files of its image.

    A file is a case; several channels are one 4-D file, or files NAME_0000, NAME_0001, ... as nnU-Net names them. Of
    one channel the ending _0000 is left out where every file has it.

    Raises:
        InputError: nothing there, or a case whose channel files are not those that are due.
    """
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder")
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.name.endswith(ENDINGS)]
    if not files:
        raise InputError(f"--input {path}: no NIfTI file (.nii.gz or .nii) there")
    numbers = [channel_number(file) for file in files]
    numbered = channels > 1 or set(numbers) == {0}
    cases: dict[str, list[Path]] = {}
    for file, number in zip(files, numbers, strict=True):
        name = stem(file)
        cases.setdefault(name[:-5] if numbered and number is not None else name, []).append(file)
    due = [[None], [0]] if channels == 1 else [[None], list(range(channels))]
    faults = [
        f"--input {path}: case {name} consists of {', '.join(file.name for file in found)}; the network reads "
        f"{channels} channels: one file, or {name}_0000 to {name}_{channels - 1:04d}"
        for name, found in cases.items()
        if (numbered and [channel_number(file) for file in found] not in due) or (not numbered and len(found) > 1)
    ]
    if faults:
        raise InputError(faults)
    return {name: tuple(found) for name, found in cases.items()}


def channel_number(file: Path) -> int | None:
    """0 of NAME_0000.nii.gz, None of a name without such an ending."""
    name = stem(file)
    return int(name[-4:]) if name[-5:-4] == "_" and name[-4:].isascii() and name[-4:].isdigit() else None


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
