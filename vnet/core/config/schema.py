"""The keys of a config: frozen dataclasses, each value checked on construction.

Add a key with `key(default, hash_default=...)`; `hash_default` is what was done before the key existed.
"""

# ruff: noqa: RUF009 - `key` makes a dataclass field, not a value shared by all configs

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from vnet.core.config.keys import (
    STUDY_ARMS,
    Axes,
    config_hash,
    cumulative_strides,
    is_code,
    is_device_name,
    is_folder_name,
    key,
    key_made,
    per_axis,
    require,
)

MOST_THREADS = 4096
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data set and how its volumes are read."""

    root: str = key("", hash_default="")
    """Folder of the data set: Decathlon layout (dataset.json, imagesTr, labelsTr) or nnU-Net's raw layout."""
    fold: int | Literal["all"] = key(0, hash_default=0)
    """Validation fold, or `all` to train on every case."""
    spacing_mm: tuple[float, float, float] | None = key(None, hash_default=None)
    """Working spacing (z, y, x) in mm; null takes the median of the training volumes."""
    groups: str | None = key(None, hash_default=None)
    """CSV file of the columns case and subject, a path or a table that comes with vnet: folds keep the cases of a
    subject together, and statistics resample subjects; null takes each case for a subject of its own."""
    cache: str | None = key(None, hash_default=None)
    """Folder for checks of data sets and preprocessed volumes; null takes RUN_ROOT/cache."""
    phantoms: int = key(0, hash_default=0)
    """Where `root` does not exist: write this many phantom volumes there first."""
    phantom_kind: Literal["organs", "sheets"] = key("organs", hash_default="organs")
    """Phantoms of touching organs and vessels, or curved sheets of known thickness under known noise."""

    def __post_init__(self) -> None:
        require(self.fold == "all" or int(self.fold) >= 0, "data.fold", "be 0 or more, or all", self.fold)
        require(self.phantoms >= 0, "data.phantoms", "be 0 or more", self.phantoms)
        if self.spacing_mm is not None:
            positive = all(0 < value < float("inf") for value in self.spacing_mm)
            require(positive, "data.spacing_mm", "be three positive numbers (z, y, x) in mm", self.spacing_mm)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """V-Net; the defaults are the paper's (arXiv 1606.04797), with batch norm."""

    width: int = key(16, hash_default=16)
    """Channels of the first stage; each stage down doubles them."""
    kernel: int | Axes = key(5, hash_default=5)
    """Kernel of the convolutions, one odd number or one per axis (z, y, x)."""
    down: tuple[int, ...] = key((1, 2, 3, 3, 3), hash_default=(1, 2, 3, 3, 3))
    """Convolutions of each stage on the way down."""
    up: tuple[int, ...] = key((3, 3, 2, 1), hash_default=(3, 3, 2, 1))
    """Convolutions of each stage on the way up, deepest first."""
    strides: tuple[Axes, ...] = key(((2, 2, 2),) * 4, hash_default=((2, 2, 2),) * 4)
    """Stride (z, y, x) between one stage and the next; (1, 2, 2) keeps thick slices."""
    norm: Literal["none", "batch", "instance", "group"] = key("batch", hash_default="batch")
    """Normalisation after each convolution."""
    activation: Literal["prelu", "relu", "leaky_relu", "elu"] = key("prelu", hash_default="prelu")
    """Activation; the paper's is PReLU."""
    dropout: float = key(0.0, hash_default=0.0)
    """Share of channels dropped after each stage but the first; 0 builds none."""
    output_stride: int | Axes = key(1, hash_default=1)
    """Stride at which the decoder stops, one number or one per axis (z, y, x)."""
    stem: Literal["full", "space_to_depth"] = key("full", hash_default="full")
    """A first stage at full resolution, or none: blocks of voxels become channels, and there is no encoder1."""
    thin_stage: int = key(0, hash_default=0)
    """Channels of a thin stage at full resolution behind a decoder that stops early, a control: with 4 it takes the
    multiply-adds of the head of `pointrend_s4`, at every voxel alike; 0 builds none."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "network.width", "be 1 or more", self.width)
        odd = all(size >= 1 and size % 2 for size in per_axis(self.kernel))
        require(odd, "network.kernel", "be odd and positive", self.kernel)
        stages = self.down + self.up
        require(all(n >= 1 for n in stages), "network.down and up", "be 1 or more", stages)
        require(len(self.up) == len(self.down) - 1, "network.up", "have one stage less than network.down", self.up)
        matching = len(self.strides) == len(self.up) and all(s in (1, 2) for axes in self.strides for s in axes)
        rule = "hold one (z, y, x) of 1s and 2s per stage of network.up"
        require(matching, "network.strides", rule, self.strides)
        require(0 <= self.dropout < 1, "network.dropout", "lie in [0, 1)", self.dropout)
        reachable = cumulative_strides(self.strides)[0 if self.stem == "full" else 1 : -1]
        require(self.thin_stage >= 0, "network.thin_stage", "be 0 or more", self.thin_stage)
        early = self.stem == "full" and per_axis(self.output_stride) != (1, 1, 1)
        rule = "be 0 where the decoder reaches full resolution or the stem is space_to_depth"
        require(not self.thin_stage or early, "network.thin_stage", rule, self.thin_stage)
        require(
            per_axis(self.output_stride) in reachable,
            "network.output_stride",
            f"be the stride of a decoder stage, one of {reachable}",
            self.output_stride,
        )


@dataclass(frozen=True, kw_only=True)
class PointsConfig:
    """Point refinement, in the symbols of the PointRend paper (arXiv 1912.08193).

    Window, N, k, beta and the Dice loss at points are those that did best on fold 0 of the hippocampus
    (results/LOG.md); the paper's are 1, k = 3, beta = 0.75 and cross-entropy alone.
    """

    refine: bool = key(True, hash_default=True)
    """Refine at prediction; training is not touched by this key."""
    num_points: int = key(2048, hash_default=2048)
    """N: points per volume and step; 0 builds no head."""
    logits: Literal["head", "network"] = key("head", hash_default="head")
    """Whose logits the losses at points are of: the head's, or, as a control without a head, the network's own."""
    oversample_ratio: float = key(10.0, hash_default=10.0)
    """k: candidates drawn per kept point."""
    importance_ratio: float = key(1.0, hash_default=1.0)
    """beta: share of N taken by uncertainty, the rest is uniform."""
    quotas: tuple[float, ...] | None = key(None, hash_default=None)
    """Share of N drawn among the voxels of each label, background first (sum at most 1); null draws from all alike."""
    refine_fraction: float = key(0.06, hash_default=0.06)
    """Share of the voxels of the target grid refined at prediction, the most uncertain first."""
    max_margin: float | Literal["auto"] | None = key(None, hash_default=None)
    """Refine only where best minus second-best logit is at most this; null sets no limit; auto takes the value that the
    end of the training measures, within which the head changes 99 % of the labels that it changes at all."""
    features: tuple[str, ...] = key(("encoder1", "decoder"), hash_default=("encoder1", "decoder"))
    """Stages of the network that the head reads: encoder1 ... encoderN, decoder (the last before the logits)."""
    image: bool = key(True, hash_default=True)
    """The head also reads the image at the point."""
    window: int = key(3, hash_default=1)
    """Voxels per axis, odd, of the image and of encoder1 that the head reads around a point; 1 is the point alone."""
    image_convolution: int = key(0, hash_default=0)
    """Channels of a 3x3x3 convolution through which the head reads its window of the image, at the points alone; 0
    reads the voxels themselves."""
    width: int = key(64, hash_default=64)
    """Channels of the head's hidden layers."""
    layers: int = key(3, hash_default=3)
    """Hidden layers of the head; the coarse logits are concatenated to the input of each."""

    def __post_init__(self) -> None:
        require(self.num_points >= 0, "points.num_points", "be 0 or more", self.num_points)
        require(self.oversample_ratio >= 1, "points.oversample_ratio", "be 1 or more", self.oversample_ratio)
        require(0 <= self.importance_ratio <= 1, "points.importance_ratio", "lie in [0, 1]", self.importance_ratio)
        shares = self.quotas or ()
        fair = all(0 <= share <= 1 for share in shares) and sum(shares) <= 1 + 1e-9
        require(fair, "points.quotas", "be shares of sum at most 1, one a label, or null", self.quotas)
        require(0 <= self.refine_fraction <= 1, "points.refine_fraction", "lie in [0, 1]", self.refine_fraction)
        require(
            self.max_margin is None or self.max_margin == "auto" or self.max_margin >= 0,
            "points.max_margin",
            "be 0 or more, auto, or null",
            self.max_margin,
        )
        reads = bool(self.features) or self.image
        require(reads, "points.features", "name a stage, or points.image be true", "neither")
        require(self.window >= 1 and self.window % 2 == 1, "points.window", "be odd and positive", self.window)
        require(self.image_convolution >= 0, "points.image_convolution", "be 0 or more", self.image_convolution)
        fits = self.image_convolution == 0 or (self.image and self.window >= 3)
        require(fits, "points.image_convolution", "be 0 without points.image or a window of 3", self.image_convolution)
        require(self.width >= 1, "points.width", "be 1 or more", self.width)
        require(self.layers >= 1, "points.layers", "be 1 or more", self.layers)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training loop."""

    steps: int = key(1000, hash_default=1000)
    """Optimiser steps."""
    seconds: float | None = key(None, hash_default=None)
    """Train for this long instead (validation not counted); the schedule follows the clock."""
    batch: int = key(2, hash_default=2)
    """Volumes or patches per step, over all processes."""
    patch: Axes = key((48, 64, 48), hash_default=(48, 64, 48))
    """Voxels (z, y, x) the network sees; smaller volumes are padded, larger ones cut."""
    precision: Precision = key("32-true", hash_default="32-true")
    """Arithmetic of the network in training."""
    optimizer: Literal["adamw", "sgd"] = key("adamw", hash_default="adamw")
    """AdamW, or SGD with Nesterov momentum of 0.99."""
    schedule: Literal["one_cycle", "poly"] = key("one_cycle", hash_default="one_cycle")
    """Learning rate over the steps: cosine up over 30 % and down, or (1 - t)^0.9."""
    learning_rate: float = key(3e-3, hash_default=3e-3)
    """Highest learning rate."""
    weight_decay: float = key(1e-2, hash_default=1e-2)
    """Weight decay."""
    clip_norm: float = key(12.0, hash_default=12.0)
    """Gradients are scaled down to this norm."""
    mirror: tuple[Literal["z", "y", "x"], ...] = key((), hash_default=())
    """Axes mirrored at random in training; leave out those that tell left from right."""
    validate_every: int = key(250, hash_default=250)
    """Steps between validations; 0 validates at the end only."""
    checkpoint_every: int = key(100, hash_default=100)
    """Steps between checkpoints."""
    max_bad_steps: int = key(10, hash_default=10)
    """Steps with a non-finite loss or gradient that are dropped before the run is stopped."""
    augment: bool = key(True, hash_default=True)
    """Vary intensities, rotate, scale and mirror in training; false leaves each patch as it is, at a random place."""
    top_k_share: float = key(1.0, hash_default=1.0)
    """Share of the voxels whose cross-entropy counts, those with the largest (top-k cross-entropy); 1 counts all."""
    init_from: str | None = key(None, hash_default=None)
    """Checkpoint whose network weights training starts from."""
    point_weight: float = key(1.0, hash_default=1.0)
    """Weight of the cross-entropy on points; Dice and cross-entropy of the coarse logits weigh 1 each."""
    point_dice_weight: float = key(1.0, hash_default=0.0)
    """Weight of the Dice loss on points (as in Mask2Former, arXiv 2112.01527); 0 leaves it out."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "training.steps", "be 1 or more", self.steps)
        require(self.seconds is None or self.seconds > 0, "training.seconds", "be positive, or null", self.seconds)
        require(self.batch >= 1, "training.batch", "be 1 or more", self.batch)
        positive = all(n >= 1 for n in self.patch)
        require(positive, "training.patch", "hold three positive sizes (z, y, x)", self.patch)
        require(0 < self.learning_rate < float("inf"), "training.learning_rate", "be positive", self.learning_rate)
        require(self.weight_decay >= 0, "training.weight_decay", "be 0 or more", self.weight_decay)
        require(self.clip_norm > 0, "training.clip_norm", "be positive", self.clip_norm)
        require(self.validate_every >= 0, "training.validate_every", "be 0 or more", self.validate_every)
        require(self.checkpoint_every >= 1, "training.checkpoint_every", "be 1 or more", self.checkpoint_every)
        require(self.max_bad_steps >= 0, "training.max_bad_steps", "be 0 or more", self.max_bad_steps)
        require(0 < self.top_k_share <= 1, "training.top_k_share", "lie in (0, 1]", self.top_k_share)
        require(self.point_weight >= 0, "training.point_weight", "be 0 or more", self.point_weight)
        require(self.point_dice_weight >= 0, "training.point_dice_weight", "be 0 or more", self.point_dice_weight)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a volume larger than the patch is tiled, and what is done to its labels afterwards."""

    overlap: float = key(0.25, hash_default=0.25)
    """Share of a tile that neighbours have in common; 0.5 costs 2.4 times the tiles of 0.25."""
    mirror: tuple[str, ...] = key((), hash_default=())
    """Axes of z, y, x along which the image is also predicted mirrored; the logits are averaged, and n axes cost 2^n
    times as much. Name axes that training.mirror names."""
    largest_component: bool = key(False, hash_default=False)
    """Keep the largest connected component of each structure; not for structures that come in pieces."""
    min_component_mm3: float = key(0.0, hash_default=0.0)
    """Drop connected components smaller than this."""
    precision: Precision | None = key(None, hash_default="32-true")
    """Arithmetic of the network in validation and prediction; null takes training.precision."""
    codes: dict[str, Any] = key_made(dict, hash_default={})
    """Coded concept of a structure in DICOM and .seg.nrrd: `{liver: [10200004, SCT, Liver]}` (value, scheme, meaning);
    three more give its category, else it is an anatomical structure. A structure without a code is tissue."""

    def __post_init__(self) -> None:
        require(0 <= self.overlap < 1, "inference.overlap", "lie in [0, 1)", self.overlap)
        known = len(set(self.mirror)) == len(self.mirror) and set(self.mirror) <= set("zyx")
        require(known, "inference.mirror", "name axes of z, y, x, each once", list(self.mirror))
        volume = 0 <= self.min_component_mm3 < float("inf")
        require(volume, "inference.min_component_mm3", "be 0 or more", self.min_component_mm3)
        for name, code in self.codes.items():
            rule = "be [value, scheme, meaning] of at most 16, 16 and 64 characters, or six with those of the category"
            require(is_code(code), f"inference.codes.{name}", rule, code)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Which runs `experiment.py` makes, and what it compares."""

    arms: dict[str, Any] = key_made(lambda: {name: {} for name in STUDY_ARMS}, hash_default=None)
    """Arm name to overrides of this same schema; a built-in arm needs none ({})."""
    folds: tuple[int, ...] = key((0,), hash_default=(0,))
    """Folds to run."""
    seeds: tuple[int, ...] = key((0,), hash_default=(0,))
    """Seeds to run."""
    choice_folds: tuple[int, ...] = key((), hash_default=())
    """Folds on which choices of the method were made: the report shows them apart, as they are no evidence."""
    comparisons: tuple[str, ...] = key((), hash_default=())
    """Differences to test, as `pointrend_s2 - coarse_s2`; empty takes the usual ones among the arms."""
    equivalence_margin: float | None = key(None, hash_default=0.002)
    """Dice within which two arms are called equivalent; null calls none so."""
    equivalence_reason: str | None = key(None, hash_default=None)
    """Why the margin is that large; every report prints it."""
    spread_from: str | None = key(None, hash_default=None)
    """Study of the same arms with several seeds, beside this one: its seed spread is printed with the intervals."""
    keep: bool = key(False, hash_default=False)
    """Merge the tables of finished runs into results/NAME of the checkout."""
    results_root: str | None = key(None, hash_default=None)
    """Folder of kept results in place of results/; null takes that of the checkout, else RUN_ROOT/results."""

    def __post_init__(self) -> None:
        require(bool(self.arms), "study.arms", "name at least one arm", "none")
        require(bool(self.folds), "study.folds", "name at least one fold", "none")
        require(bool(self.seeds), "study.seeds", "name at least one seed", "none")
        margin, reason = self.equivalence_margin, (self.equivalence_reason or "").strip()
        require(margin is None or margin >= 0, "study.equivalence_margin", "be 0 or more", margin)
        require(margin is None or bool(reason), "study.equivalence_margin", "have a study.equivalence_reason", margin)
        plain = self.spread_from is None or Path(self.spread_from).name == self.spread_from
        require(plain, "study.spread_from", "be the name of a study", self.spread_from)
        for comparison in self.comparisons:
            arms = [name.strip() for name in comparison.split(" - ")]
            known = len(arms) == 2 and all(name in self.arms for name in arms)
            require(known, "study.comparisons", f"be `A - B` of the arms {sorted(self.arms)}", comparison)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How predictions are scored."""

    tolerance_mm: float = key(1.0, hash_default=1.0)
    """Tolerance of the surface Dice in mm."""

    def __post_init__(self) -> None:
        require(self.tolerance_mm >= 0, "metrics.tolerance_mm", "be 0 or more", self.tolerance_mm)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    name: str = key("", hash_default="")
    """Name of the experiment; by default the config file's stem."""
    arm: str = key("dense", hash_default="dense")
    """Arm: dense, coarse_s2, coarse_s4, pointrend_s1, pointrend_s2, pointrend_s4, lean_dense, lean_coarse_s4, lean_s2,
    lean_s4, points_only_s4, or one of study.arms."""
    seed: int = key(0, hash_default=0)
    """Seed of weights, batches and points."""
    threads: int = key(0, hash_default=0)
    """CPU threads of each process; 0 divides the cores among the processes of a machine."""
    device: str = key("auto", hash_default="auto")
    """Where networks run: cpu, cuda, cuda:N, or auto for the first GPU where there is one."""
    run_root: str = key("runs", hash_default="runs")
    """Folder of the runs: RUN_ROOT/NAME/ARM/foldF_seedS."""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        require(is_folder_name(self.name), "name", "be a plain folder name", repr(self.name))
        require(is_folder_name(self.arm), "arm", "be a plain folder name", repr(self.arm))
        paths = {"run_root": self.run_root, "data.root": self.data.root, "data.cache": self.data.cache or ""}
        paths["data.groups"] = self.data.groups or ""
        paths["study.results_root"] = self.study.results_root or ""
        for name, path in paths.items():
            require(path.isprintable(), name, "be a printable path", repr(path))
        require(0 <= self.seed < 2**32, "seed", "lie in [0, 2^32)", self.seed)
        require(0 <= self.threads <= MOST_THREADS, "threads", f"be 0 to {MOST_THREADS}", self.threads)
        require(is_device_name(self.device), "device", "be auto, cpu, cuda or cuda:N", self.device)
        if self.inference.precision is None:  # resolved here, so that files and hash hold what is done
            object.__setattr__(self, "inference", replace(self.inference, precision=self.training.precision))
        first = 1 if self.network.stem == "full" else 2
        stages = {f"encoder{i}" for i in range(first, len(self.network.down) + 1)} | {"decoder"}
        for name in self.points.features:
            require(name in stages, "points.features", f"name stages of {sorted(stages)}", name)
        total = cumulative_strides(self.network.strides)[-1]
        deepest = [-(-n // s) for n, s in zip(self.training.patch, total, strict=True)]
        require(
            self.network.norm not in ("batch", "instance") or deepest != [1, 1, 1],
            "training.patch",
            f"leave more than one voxel to normalise at the deepest stage (stride {total})",
            list(self.training.patch),
        )

    @property
    def has_head(self) -> bool:
        return self.points.num_points > 0 and self.points.logits == "head"

    @property
    def run_folder(self) -> Path:
        return Path(self.run_root, self.name, self.arm, self.run_name)

    @property
    def run_name(self) -> str:
        return f"fold{self.data.fold}_seed{self.seed}"

    @property
    def cache_folder(self) -> Path:
        return Path(self.data.cache) if self.data.cache else Path(self.run_root, "cache")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as YAML and JSON hold them."""
        return json.loads(json.dumps(asdict(self)))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def hash(self, data_hash: str) -> str:
        """The run's name as 16 hex digits: what this config computes, on a data set of that content.

        `vnet.core.config.keys` says which keys count.
        """
        return config_hash(self.to_dict(), type(self), data_hash)
