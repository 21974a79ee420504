"""Checkpoints: enough to continue bit for bit and to predict; written whole, read without running code.

A bundle is a folder of what prediction needs of a run, which MONAI's bundle command reads too: METADATA holds the
config under `vnet`, WEIGHTS a checkpoint without optimiser and progress.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vnet.core.config import Config, load_resolved
from vnet.core.errors import InputError
from vnet.core.files import read_json, write_bytes
from vnet.core.runs import Run, open_run
from vnet.data.dataset import Dataset
from vnet.data.preprocessing import Preprocessing
from vnet.model.segmenter import Segmenter, build_model

FORMAT = 1
METADATA, WEIGHTS = Path("configs", "metadata.json"), Path("models", "model.pt")  # in a bundle


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that `path` always holds a whole checkpoint."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(path, buffer.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        InputError: missing, torn, of another program, or holding code instead of tensors and plain values.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train the run first, or name another with --checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the zip reader, the unpickler and torch each have their own kinds
        reason = (
            "holds more than tensors and plain values" if "weights_only" in str(error).lower() else "torn or foreign"
        )
        raise InputError(f"{path}: not a checkpoint of this project ({reason}); train again or restore it") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or "model" not in state:
        raise InputError(f"{path}: not a checkpoint of this project (format {FORMAT}); train again or restore it")
    return state


def load_weights(model: Segmenter, state: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into `model`.

    Raises:
        InputError: they are of another network; names the first tensor that differs.
    """
    ours, theirs = model.state_dict(), state["model"]
    for name in sorted(ours.keys() | theirs.keys()):
        here = tuple(ours[name].shape) if name in ours else "absent"
        there = tuple(theirs[name].shape) if name in theirs else "absent"
        if here != there:
            raise InputError(
                f"{path}: checkpoint of another network: {name} is {there} there and {here} in the config; "
                "use the config that it was trained with"
            )
    model.load_state_dict(theirs)


def start_from(model: Segmenter, path: Path, dataset: Dataset) -> str:
    """Put the weights of another training into a fresh `model`.

    Three parts may stay new: the last layer and the head, where that training had other structures; the layers that
    read the image, where it had other channels; the head, where it had none. All other weights must fit.

    Returns:
        A line that names the weights taken and the new ones.

    Raises:
        InputError: not a checkpoint, or one of another network; names the first tensor that differs.
    """
    if not path.is_file():
        raise InputError(f"training.init_from: {path}: no such checkpoint; correct the path")
    state = read_checkpoint(path)
    ours, theirs = model.state_dict(), dict(state["model"])
    reasons, new = [], [] if any(name.startswith("head.") for name in theirs) else ["head."]
    if tuple(state["structures"]) != dataset.structures:
        reasons.append(f"structures {list(state['structures'])} there, {list(dataset.structures)} here")
        new += ["network.logits.", "head."]
    if state["in_channels"] != len(dataset.modalities):
        reasons.append(f"{state['in_channels']} channels there, {len(dataset.modalities)} here")
        new += ["network.downs.0." if model.network.stem == "space_to_depth" else "network.encoders.0.", "head."]
    fresh = [name for name in ours if name.startswith(tuple(new))]
    if model.head is None:
        theirs = {name: value for name, value in theirs.items() if not name.startswith("head.")}
    taken = {name: value for name, value in theirs.items() if name not in fresh}
    load_weights(model, {"model": {name: ours[name] for name in fresh} | taken}, path)
    parts = sorted({prefix.rstrip(".") for prefix in new if any(name.startswith(prefix) for name in fresh)})
    new_parts = f"; new: {', '.join(parts)}" + (f" ({'; '.join(reasons)})" if reasons else "") if fresh else ""
    return f"weights of {len(taken)} tensors from {path}{new_parts}"


@dataclass(frozen=True)
class Trained:
    """A trained model and what it was trained for.

    Attributes:
        model: in evaluation mode.
        preprocessing: how its images are prepared.
        structures: names by label value, 0 is background.
        in_channels: channels of its images.
        training_images: content hashes of the images it was trained on; empty where the checkpoint does not say.
    """

    model: Segmenter
    preprocessing: Preprocessing
    structures: tuple[str, ...]
    in_channels: int
    training_images: frozenset[str] = frozenset()

    def require_same_task(self, dataset: Dataset) -> None:
        """Raises `InputError` where a data set has other channels or structures."""
        if len(dataset.modalities) != self.in_channels:
            raise InputError(
                f"{dataset.root}: {len(dataset.modalities)} channels, the network reads {self.in_channels}; "
                "name a data set of the same kind"
            )
        if dataset.structures != self.structures:
            raise InputError(
                f"{dataset.root}: structures {list(dataset.structures)}, the network knows {list(self.structures)}; "
                "make the labels in dataset.json agree"
            )


def load_model(run: Run, config: Config, checkpoint: str) -> Trained:
    """The trained model of a run.

    Args:
        checkpoint: `last` or `best`.

    Raises:
        InputError: no such checkpoint, or one of another network.
    """
    if checkpoint not in ("last", "best"):
        raise InputError(f"--checkpoint must be last or best, got {checkpoint}")
    path = run.folder / "checkpoints" / f"{checkpoint}.ckpt"
    if checkpoint == "best" and config.data.fold == "all":
        raise InputError(
            f"{run.folder}: trained on every case (data.fold: all), no checkpoint is the best; use --checkpoint last"
        )
    return trained_from(read_checkpoint(path), config, path)


def trained_from(state: Mapping[str, Any], config: Config, path: Path) -> Trained:
    """The trained model of a checkpoint's state.

    Args:
        path: of the checkpoint, for errors.

    Raises:
        InputError: its weights are of another network than that of `config`.
    """
    structures = tuple(state["structures"])
    model = build_model(config, in_channels=state["in_channels"], classes=len(structures), ignore=state["ignore"])
    load_weights(model, state, path)
    model.max_margin = state.get("max_margin")
    preprocessing = Preprocessing.from_dict(state["preprocessing"])
    images = frozenset(state.get("training_images", ()))
    return Trained(model.eval(), preprocessing, structures, state["in_channels"], images)


def open_trained(
    folder: str | Path, overrides: Sequence[str] = (), checkpoint: str = "last"
) -> tuple[Path, Config, Trained]:
    """(folder, config, model) of a run or of a bundle.

    Args:
        overrides: config keys as on the command line.
        checkpoint: of a run, `last` or `best`.

    Raises:
        InputError: neither a run nor a bundle, no such checkpoint, or weights of another network.
    """
    folder = Path(folder)
    if not (folder / METADATA).is_file():
        run, config = open_run(folder, overrides)
        return folder, config, load_model(run, config, checkpoint)
    if checkpoint != "last":
        raise InputError(f"{folder}: a bundle holds one checkpoint; leave --checkpoint {checkpoint} out")
    nested = (read_json(folder / METADATA) or {}).get("vnet")
    if not isinstance(nested, dict) or not isinstance(nested.get("config"), dict):
        raise InputError(f"{folder / METADATA}: holds no config under vnet; export the bundle with vnet export")
    config = load_resolved(nested["config"] | {"study": {}}, overrides, where=str(folder / METADATA))
    return folder, config, trained_from(read_checkpoint(folder / WEIGHTS), config, folder / WEIGHTS)
