"""The study's config: a frozen dataclass, read from YAML and the command line, checked on construction."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from vnet.core.errors import InputError

ARMS = {
    "conv28": "Mask R-CNN of torchvision: convolution head of 28 x 28 bins",
    "pointrend28": "PointRend from the convolution head's 28 x 28 bins to pixels",
    "pointrend7": "PointRend from the paper's light head of 7 x 7 bins to pixels",
}
PLACES = ("data", "run_root", "threads", "arms", "seeds")  # where things lie and which runs are made: not in the hash


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run of the study, and which runs the study has."""

    name: str = "nuclei"
    """Folder of the runs below run_root, and of the results below results/."""
    data: str = ""
    """File of images and instance maps (.npz with names, images, labels)."""
    run_root: str = "runs"
    """Folder of all runs."""
    arm: str = "all"
    """One of the arms, or all."""
    seed: int = -1
    """One of the seeds; -1 is all."""
    arms: list[str] = ()  # type: ignore[assignment]
    """Arms of the study."""
    seeds: list[int] = ()  # type: ignore[assignment]
    """Seeds of the study."""
    threads: int = 1
    """Threads of torch."""
    clusters: int = 12
    """Groups of images whose intensity histograms are alike; a group is never divided between the parts."""
    test_images: int = 18
    """Images kept for the comparison, about: whole groups."""
    validation_images: int = 8
    """Images for the curves, about."""
    steps: int = 800
    """Steps of a training."""
    batch: int = 2
    """Crops a step."""
    crop: int = 256
    """Side of a crop, in pixels."""
    learning_rate: float = 0.001
    """Of AdamW, after a rise over 50 steps."""
    averaging: float = 0.99
    """Share that the averaged weights keep in each step; they are what is validated, scored and predicted with."""
    validate_every: int = 100
    """Steps between two validations."""
    checkpoint_every: int = 50
    """Steps between two checkpoints."""
    width: int = 16
    """Channels of the trunk at stride 2; twice and four times as many follow."""
    channels: int = 32
    """Channels of the feature pyramid, the convolution mask head and the point head's input."""
    head_width: int = 96
    """Channels of the point head's hidden layers."""
    coarse_width: int = 256
    """Channels of the 7 x 7 head's hidden layers."""
    num_points: int = 196
    """Training points a box (14 x 14 in the paper)."""
    refine_points: int = 784
    """Pixels a box that the point head is asked about in prediction (28 x 28 in the paper)."""
    boundary_pixels: int = 2
    """Width of the boundary in boundary IoU."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", list(self.arms) or list(ARMS))
        object.__setattr__(self, "seeds", list(self.seeds) or [0, 1, 2])
        names = [*self.arms, *([] if self.arm == "all" else [self.arm])]
        faults = [f"unknown arm {name}; it is one of {', '.join(ARMS)}" for name in names if name not in ARMS]
        lowest = {"threads": 1, "clusters": 3, "test_images": 1, "validation_images": 1, "steps": 1, "batch": 1}
        lowest |= {"crop": 64, "validate_every": 1, "checkpoint_every": 1, "width": 4, "channels": 8, "head_width": 1}
        lowest |= {"coarse_width": 1, "num_points": 1, "refine_points": 0, "boundary_pixels": 1, "seed": -1}
        for key, least in lowest.items():
            if getattr(self, key) < least:
                faults.append(f"{key} must be at least {least}, got {getattr(self, key)}")
        if self.crop % 32:
            faults.append(f"crop must be a multiple of 32, got {self.crop}")
        if not 0 <= self.averaging < 1:
            faults.append(f"averaging must lie in [0, 1), got {self.averaging}")
        if not 0 < self.learning_rate < 1:
            faults.append(f"learning_rate must lie in (0, 1), got {self.learning_rate}")
        if faults:
            raise InputError(faults)

    def runs(self) -> list[Config]:
        """The runs that this config asks for, one config each."""
        arms = self.arms if self.arm == "all" else [self.arm]
        seeds = self.seeds if self.seed < 0 else [self.seed]
        return [replace(self, arm=arm, seed=seed) for seed in seeds for arm in arms]

    @property
    def folder(self) -> Path:
        """Of this run."""
        return Path(self.run_root) / self.name / self.arm / f"seed{self.seed}"

    def hash(self, data_hash: str) -> str:
        """12 hexadecimal digits of everything that a run's numbers depend on."""
        kept = {key: value for key, value in asdict(self).items() if key not in PLACES}
        return hashlib.sha256(json.dumps([kept, data_hash], sort_keys=True).encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """All keys but the places on this machine."""
        kept = {key: value for key, value in asdict(self).items() if key not in ("data", "run_root", "threads")}
        return yaml.safe_dump(kept, sort_keys=False)


def load_config(argv: Sequence[str]) -> Config:
    """The config of a command line: defaults < file < command line.

    Raises:
        InputError: an unknown key, a wrong type, a value out of range, a file that cannot be read.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, prog="instances.py train")
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the keys below.")
    parser.add_class_arguments(Config)
    refuse_unknown([word[2:].partition("=")[0] for word in argv if word.startswith("--")], "command line")
    try:
        given = parser.parse_args(list(argv))
        nested = read_file(Path(given.config)) if given.config else {}
        parsed = parser.parse_args(list(argv), namespace=parser.parse_object(nested))
    except ArgumentError as error:
        raise InputError(f"{_option(argv, '--config') or 'command line'}: {_one_line(error)}") from None
    return Config(**{item.name: parsed[item.name] for item in fields(Config)})


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a YAML file, refused where they are not of the schema."""
    try:
        nested = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); name an existing config file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(nested, dict):
        raise InputError(f"{path}: must hold keys and values, got {type(nested).__name__}")
    refuse_unknown([str(key) for key in nested], str(path))
    return nested


def refuse_unknown(keys: Sequence[str], where: str) -> None:
    """Name every key that is not of the schema, with the nearest that is."""
    known = [item.name for item in fields(Config)]
    faults = []
    for key in keys:
        if key not in (*known, "config", "help"):
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help for the keys"
            faults.append(f"{where}: unknown key {key}; {hint}")
    if faults:
        raise InputError(faults)


def _option(argv: Sequence[str], name: str) -> str | None:
    words = list(argv)
    return words[words.index(name) + 1] if name in words[:-1] else None


def _one_line(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("usage"))
