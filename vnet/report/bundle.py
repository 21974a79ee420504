"""A bundle of a trained run: what prediction needs, MONAI's metadata and inference config, and a model card.

BUNDLE/configs/metadata.json    what the model is and reads, and under `vnet` the config that builds it
BUNDLE/configs/inference.json   how `python -m monai.bundle run` predicts with it
BUNDLE/models/model.pt          weights, preprocessing, structures, margin; no optimiser
BUNDLE/docs/README.md           the model card
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vnet.core.config import Config, flatten, unflatten
from vnet.core.config.keys import LEFT_OUT
from vnet.core.errors import InputError
from vnet.core.files import read_json, read_table, write_text
from vnet.core.runs import open_run
from vnet.data.description import read_modalities, read_source
from vnet.model.checkpoints import METADATA, WEIGHTS, load_model, read_checkpoint, save_checkpoint

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
INFERENCE, CARD = Path("configs", "inference.json"), Path("docs", "README.md")
KEPT = ("structures", "in_channels", "ignore", "preprocessing", "max_margin")  # of a checkpoint, beside the weights
REFERENCES = [
    "F. Milletari, N. Navab, S.-A. Ahmadi: V-Net, 2016, arXiv 1606.04797",
    "A. Kirillov, Y. Wu, K. He, R. Girshick: PointRend, 2019, arXiv 1912.08193",
]


@dataclass(frozen=True)
class Exported:
    """What files of a bundle say of a run.

    Attributes:
        name: of the bundle.
        config: of the run, without folders of this machine.
        info: what its run.json holds.
        state: what its checkpoint holds.
        source: `reference` and `licence` of the data, and `modalities`, as far as dataset.json is there and says.
        cases: numbers of cases trained on and validated on; None where the run does not say.
        dice: refined or not -> mean over the validation cases of the mean over structures.
        half: weights in half precision.
    """

    name: str
    config: dict[str, Any]
    info: Mapping[str, Any]
    state: Mapping[str, Any]
    source: Mapping[str, Any]
    cases: tuple[int, int] | None
    dice: Mapping[bool, float]
    half: bool


def write_bundle(run_folder: str | Path, target: str | Path, *, checkpoint: str = "last", half: bool = False) -> Path:
    """Write the bundle of a trained run to a new or empty folder.

    Args:
        checkpoint: `last` or `best`.
        half: store weights in half precision.

    Raises:
        InputError: not a run, one whose training has not ended, no such checkpoint, or a folder that holds files.
    """
    run, config = open_run(run_folder)
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there and not an empty folder; name another for the bundle")
    load_model(run, config, checkpoint)  # refuses weights that do not fit the config
    if "steps" not in run.info():
        raise InputError(f"{run.folder}: its training has not ended; run the training command again")
    path = run.folder / "checkpoints" / f"{checkpoint}.ckpt"
    state = read_checkpoint(path)
    weights = halved(state["model"], path) if half else state["model"]
    exported = Exported(
        name=target.resolve().name,
        config=portable_config(config),
        info=run.info(),
        state=state,
        source=data_source(Path(config.data.root)),
        cases=case_numbers(run.folder, config),
        dice=mean_dice(read_table(run.folder / "cases.csv")) if checkpoint == "last" else {},
        half=half,
    )
    save_checkpoint(target / WEIGHTS, {"model": weights} | {key: state.get(key) for key in KEPT})
    write_text(target / METADATA, json.dumps(metadata(exported), indent=2) + "\n")
    write_text(target / INFERENCE, json.dumps(inference_config(), indent=2) + "\n")
    write_text(target / CARD, model_card(exported))
    return target


def halved(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Floating-point weights in half precision.

    Raises:
        InputError: a weight beyond the range of half precision (65504).
    """
    found = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    for name, value in found.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {name} holds weights beyond half precision; export without --half")
    return found


def portable_config(config: Config) -> dict[str, Any]:
    """The nested keys of a config that say what is computed, without folders of this machine."""
    flat = flatten(config.to_dict())
    flat["data.groups"] = Path(config.data.groups).name if config.data.groups else None
    kept = {
        key: value
        for key, value in flat.items()
        if not any(key == place or key.startswith(f"{place}.") for place in (*LEFT_OUT, "training.init_from"))
    }
    return unflatten(kept)


def data_source(root: Path) -> dict[str, Any]:
    """What dataset.json says of source, licence and modalities; {} where it is not there any more."""
    text = read_json(root / "dataset.json") or {}
    modalities, _ = read_modalities(text.get("channel_names", text.get("modality")))
    return {**read_source(text), **({"modalities": list(modalities)} if modalities else {})}


def case_numbers(folder: Path, config: Config) -> tuple[int, int] | None:
    """Cases trained on and validated on, by the run's splits.json; None for `data.fold: all`."""
    folds = (read_json(folder / "splits.json") or {}).get("folds", [])
    if config.data.fold == "all" or int(config.data.fold) >= len(folds):
        return None
    fold = folds[int(config.data.fold)]
    return len(fold["train"]), len(fold["val"])


def mean_dice(rows: Sequence[Mapping[str, str]]) -> dict[bool, float]:
    """Refined or not -> mean over cases of the mean over structures, from the rows of cases.csv."""
    found: dict[bool, dict[str, list[float]]] = {}
    for row in rows:
        if row["dice"]:
            found.setdefault(row["refined"] == "true", defaultdict(list))[row["case"]].append(float(row["dice"]))
    means = {refined: [sum(case) / len(case) for case in cases.values()] for refined, cases in found.items()}
    return {refined: sum(cases) / len(cases) for refined, cases in means.items()}


def metadata(exported: Exported) -> dict[str, Any]:
    """MONAI's metadata.json, by the keys of its schema, and the run's config under `vnet`."""
    info, state = exported.info, exported.state
    structures, channels = list(state["structures"]), int(state["in_channels"])
    modalities = exported.source.get("modalities", [])
    if len(modalities) != channels:
        modalities = [f"channel {c}" for c in range(channels)]
    ct = all(channel["rule"] == "ct" for channel in state["preprocessing"]["channels"])
    image = {
        "type": "image",
        "format": "hounsfield" if ct else "magnitude",
        "modality": ", ".join(modalities),
        "num_channels": channels,
        "spatial_shape": ["*", "*", "*"],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(c): name for c, name in enumerate(modalities)},
    }
    labels = {
        "type": "image",
        "format": "segmentation",
        "num_channels": 1,
        "spatial_shape": ["*", "*", "*"],
        "dtype": label_type(structures),
        "value_range": [0, len(structures) - 1],
        "is_patch_data": False,
        "channel_def": {str(value): name for value, name in enumerate(structures)},
    }
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by vnet export"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": installed("pointrend", "nibabel", "pytorch-ignite", "fire"),
        "name": exported.name,
        "task": f"Segmentation of {', '.join(structures[1:])}",
        "description": f"V-Net, arm {exported.config['arm']}, {'with' if has_head(exported) else 'without'} point head",
        "authors": "not stated",
        "copyright": "not stated",
        "data_source": f"{info.get('data_set', '')}; {exported.source.get('reference', 'source not stated')}",
        "data_type": "nibabel",
        "intended_use": "Research, not diagnosis",
        "eval_metrics": {"refined " * refined + "mean Dice": round(v, 4) for refined, v in exported.dice.items()},
        "references": REFERENCES,
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": labels}},
        "vnet": {"config": exported.config},
    }


def label_type(structures: Sequence[str]) -> str:
    """The type of a label file's voxels."""
    return "uint8" if len(structures) <= 256 else "uint16"


def has_head(exported: Exported) -> bool:
    return int(exported.config["points"]["num_points"]) > 0


def installed(*packages: str) -> dict[str, str]:
    """The versions of those packages that are there."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def inference_config() -> dict[str, Any]:
    """MONAI's inference.json: every image of `dataset_dir` is labelled into `output_dir`, NAME_seg.nii.gz.

    The predictor reads the bundle itself, so that the file is the same for every model.
    """
    here = "vnet.inference.monai_bundle"
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "overrides": [],
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "predictor": {
            "_target_": "vnet.inference.predictor.Predictor",
            "runs": "@bundle_root",
            "overrides": "@overrides",
            "device": "$str(@device)",
        },
        "network_def": "$@predictor.model",
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "LoadImaged", "keys": "image", "reader": f"{here}.VolumeReader"}],
        },
        "datalist": {
            "_target_": f"{here}.list_images",
            "folder": "@dataset_dir",
            "channels": "$@predictor.in_channels",
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": f"{here}.LabelInferer", "predictor": "@predictor"},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "$numpy.uint8 if len(@predictor.structures) <= 256 else numpy.uint16",
                    "separate_folder": False,
                    # to the grid that they have already: without it, MONAI 1.6 refuses turned images
                    "resample": True,
                }
            ],
        },
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def model_card(exported: Exported) -> str:
    """The text of docs/README.md; what only its author knows stands as a line to be completed."""
    info, config, source = exported.info, exported.config, exported.source
    facts = {
        "data": f"{info.get('data_set', 'not stated')} (content hash {info.get('data_hash', 'not stated')})",
        "source": source.get("reference", "not stated"),
        "licence of the data": source.get("licence", "not stated"),
        "cases": cases_text(exported),
        "training": f"{info['steps']} steps, seed {config['seed']}, commit {info.get('commit') or 'not stated'}",
        "command": f"`{info['command']}`" if info.get("command") else "not stated",
        "weights": f"{info.get('parameters', 0):,} in {'half' if exported.half else 'single'} precision",
    }
    names = ", ".join(f"{value} {name}" for value, name in enumerate(exported.state["structures"]))
    lines = [
        f"# {exported.name}",
        "",
        f"Labels of NIfTI volumes on each image's own grid: {names}. A V-Net, arm `{config['arm']}`"
        + (", with a PointRend head." if has_head(exported) else "."),
        "",
        "```sh",
        "vnet predict BUNDLE --input SCANS --output predicted",
        "python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \\",
        "  --dataset_dir SCANS --output_dir predicted",
        "```",
        "",
        "Both commands give the same labels. The second needs `pip install 'pointrend[vnet,bundle]'`.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "## Dice",
        "",
        *dice_lines(exported),
        "",
        "## Licence and limits",
        "",
        "To be completed by who passes the model on: the licence of the weights, on whom and which scanners it was not",
        "tried. Until then: research on images like those above, no diagnosis.",
    ]
    return "\n".join(lines) + "\n"


def cases_text(exported: Exported) -> str:
    if exported.cases is None:
        return "every case of the data set is trained on"
    return f"fold {exported.config['data']['fold']}: {exported.cases[0]} trained on, {exported.cases[1]} not seen"


def dice_lines(exported: Exported) -> list[str]:
    """Lines on the validation cases; that there are none is said too."""
    if not exported.dice or exported.cases is None:
        return ["Not measured: no cases were kept apart, or the weights are not those that were scored."]
    names = {True: "refined", False: "without refinement" if has_head(exported) else "the network"}
    means = ", ".join(f"{names[refined]} {value:.4f}" for refined, value in sorted(exported.dice.items(), reverse=True))
    precision = " with the weights in single precision" if exported.half else ""
    return [f"Mean over the {exported.cases[1]} cases not seen, of the mean over structures{precision}: {means}."]
