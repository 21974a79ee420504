"""A config planned from what a data set holds, with the reason of each choice.

Facts go in, a config comes out; nothing is read and nothing is timed here. `vnet.training.grid` chooses spacing, patch
and halvings; what follows from them is scaled from the study of docs/results.md.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vnet.core.config import (
    Axes,
    Config,
    DataConfig,
    NetworkConfig,
    PointsConfig,
    StudyConfig,
    TrainingConfig,
    cumulative_strides,
    flatten,
    per_axis,
)
from vnet.core.config.keys import SMALL_BODY
from vnet.core.hardware import describe_device, find_device, set_threads
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import Spacing, Survey, find_warnings, survey_dataset
from vnet.data.header_affine import print_findings
from vnet.data.preprocessing import round_off
from vnet.training.cost import MEASURED_ON, StepCost, estimate_step, measure_step
from vnet.training.grid import SMALLEST_EDGE, UNEQUAL, Grid, choose_grid

ARM = "planned"
# the study of docs/results.md: voxels of a patch, passes over the training voxels, share of voxels that are refined,
# and surface of the labels (mm^2 a mm^3, times the 4 mm of an output voxel)
STUDY_VOXELS, STUDY_PASSES, STUDY_SHARE, STUDY_SHELL = 48 * 64 * 48, 13, 0.06, 0.18
LEAST_SHARE, MOST_SHARE = 0.01, 0.25  # of the voxels; the most that was tried, for 32 structures of the brain
FEWEST_STEPS, MOST_STEPS = 1000, 20_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A config with the reasons of its choices.

    Attributes:
        survey: what it rests on.
        config: of the planned arm.
        reasons: key -> why it has its value, "" where another line says it; in the order of the file.
        estimate, dense: of a step of the planned arm, and of the usual V-Net on the same patch, on `cores` of a CPU.
        cores: of the estimates.
        measured: of a step of the planned arm, where it was timed.
        device: on which it was.
    """

    survey: Survey
    config: Config
    reasons: Mapping[str, str]
    estimate: StepCost
    dense: StepCost
    cores: int
    measured: StepCost | None = None
    device: str = ""

    def to_yaml(self) -> str:
        """The config file, each choice below its reason."""
        values, section = flatten(self.config.to_dict()), ""
        lines = [*comment(describe_survey(self.survey)), *comment(self.expense())]
        for name, reason in self.reasons.items():
            above, _, key = name.rpartition(".")
            lines += [f"{above}:"] if above != section else []
            section, indent = above, "  " * bool(above)
            lines += [indent + line for line in comment(reason)]
            lines.append(f"{indent}{key}: {json.dumps(values[name], ensure_ascii=False)}")
        return "\n".join([*lines, ""])

    def expense(self) -> str:
        """What a training takes, and on what machine that holds."""
        steps, cost = self.config.training.steps, self.measured or self.estimate
        where = f"estimated for {self.cores} CPU cores from steps on {MEASURED_ON} (--measure times this machine)"
        if self.measured is not None:
            where = f"two steps of noise timed on {self.device}"
        return (
            f"Cost, {where}: {duration(steps * cost.seconds)} and {cost.memory_mib:.0f} MiB for {steps} steps of "
            f"{cost.seconds:.2g} s, validation not counted; {cost.multiply_adds / 1e9:.3g} G multiply-adds a patch. "
            f"`dense`, the usual V-Net, takes about {self.dense.seconds / self.estimate.seconds:.1f} times as long and "
            f"{self.dense.memory_mib:.0f} MiB."
        )


def describe_survey(survey: Survey) -> str:
    """The first lines of a plan."""
    unsure = "" if survey.ignore is None else f" Voxels of label {survey.ignore} are neither learnt nor scored."
    return (
        f"Planned by `vnet data plan` from {survey.name}: {count(len(survey.shapes), 'labelled case')}, "
        f"{survey.training} of them in the training of fold 0; {count(len(survey.modalities), 'channel')} "
        f"({', '.join(survey.modalities)}), {count(survey.classes - 1, 'structure')}.{unsure}"
    )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    return f"about {seconds / 60:.2g} minutes" if seconds < 5400 else f"about {seconds / 3600:.2g} hours"


def comment(text: str) -> list[str]:
    """Text as lines of a comment, [] of none."""
    return [f"# {line}" for line in textwrap.wrap(text, 110, break_on_hyphens=False)]


def read_survey(root: Path | str) -> Survey:
    """The survey of a data set, every voxel read; its warnings are printed.

    Raises:
        InputError: every fault of the data set.
    """
    dataset = open_dataset(root)
    facts = check_dataset(dataset, None).facts
    print_findings(find_warnings(dataset, facts))
    return survey_dataset(dataset, facts)


def make_plan(survey: Survey, *, memory_mib: float, cores: int) -> Plan:
    """The plan for a data set.

    Args:
        memory_mib: what a training step may take, the libraries included.
        cores: of the CPU, for the seconds.
    """
    channels, classes = len(survey.modalities), survey.classes

    def cost(config: Config) -> StepCost:
        return estimate_step(config, channels=channels, classes=classes, cores=cores)

    def fits(patch: Axes, strides: Sequence[Axes]) -> bool:
        return cost(draft(survey, patch, strides)).memory_mib <= memory_mib

    grid, median_mm = choose_grid(survey, fits)
    config = complete(draft(survey, grid.patch, grid.strides), survey, grid)
    return Plan(
        survey=survey,
        config=config,
        reasons=give_reasons(survey, config, grid, median_mm, memory_mib),
        estimate=cost(config),
        dense=cost(dense_of(config)),
        cores=cores,
    )


def dense_of(config: Config) -> Config:
    """The usual V-Net in the place of a planned arm: a decoder to the full resolution, no head."""
    network = replace(config.network, output_stride=1)
    return replace(config, network=network, points=replace(config.points, num_points=0))


def measure_plan(plan: Plan, device: str) -> Plan:
    """The plan with the cost of steps made here.

    Args:
        device: as of `find_device`.
    """
    set_threads(0)
    found, survey = find_device(device), plan.survey
    cost = measure_step(plan.config, channels=len(survey.modalities), classes=survey.classes, device=found)
    return replace(plan, measured=cost, device=describe_device(found))


def draft(survey: Survey, patch: Axes, strides: Sequence[Axes]) -> Config:
    """What follows from the patch and its halvings."""
    stages, voxels = len(strides) + 1, math.prod(patch)
    # the decoder's last stage at stride 4 has 8 times the width: at least a channel a class
    width = next(w for w in (8, 16, 32, 64) if 8 * w >= survey.classes or w == 64)
    width = max(width, 8 * -(-len(survey.modalities) // 8))
    points = power_of_two(2048 * (voxels / STUDY_VOXELS) ** (2 / 3))
    return Config(
        name="plan",
        arm=ARM,
        network=NetworkConfig(
            width=width,
            kernel=tuple(1 if n == 1 else 3 for n in patch) if 1 in patch else 3,  # type: ignore[arg-type]
            down=tuple(SMALL_BODY["down"][:stages]),
            up=tuple(SMALL_BODY["up"][: stages - 1]),
            strides=tuple(strides),
            norm="instance",
            output_stride=cumulative_strides(strides)[min(2, len(strides) - 1)],
        ),
        points=PointsConfig(
            num_points=min(max(points, 2048), 8192, voxels // 4),
            width=min(max(64, 2 * power_of_two(survey.classes - 1)), 256),
        ),
        training=TrainingConfig(batch=min(max(power_of_two(2 * STUDY_VOXELS / voxels), 2), 8), patch=patch),
        study=StudyConfig(arms={ARM: {}}),
    )


def power_of_two(number: float) -> int:
    """The largest power of two that is not above `number`, at least 1."""
    return 2 ** int(math.log2(max(number, 1)))


def complete(config: Config, survey: Survey, grid: Grid) -> Config:
    """A draft with what follows from the data set as a whole: spacing, steps, share of voxels that are refined."""
    due = STUDY_PASSES * survey.training / (config.training.batch * grid.seen)
    steps = min(max(round(due / 100) * 100, FEWEST_STEPS), MOST_STEPS)
    fraction = refined_share(survey, grid, per_axis(config.network.output_stride))
    return replace(
        config,
        data=DataConfig(root=survey.root, spacing_mm=grid.spacing_mm),
        points=replace(config.points, refine_fraction=fraction),
        training=replace(config.training, steps=steps, validate_every=steps // 4),
    )


def refined_share(survey: Survey, grid: Grid, output_stride: Axes) -> float:
    """Share of the voxels that the head is asked about: as in the study for as much surface, and in proportion beyond.

    Below, it falls only under half of the study's surface, as the labels of some cases have more than the median.
    """
    thickness_mm = math.prod(s * mm for s, mm in zip(output_stride, grid.spacing_mm, strict=True)) ** (1 / 3)
    surface = survey.surface_per_mm * thickness_mm / STUDY_SHELL
    return round(min(max(STUDY_SHARE * max(surface, min(2 * surface, 1)), LEAST_SHARE), MOST_SHARE), 3)


def give_reasons(survey: Survey, config: Config, grid: Grid, median_mm: Spacing, memory_mib: float) -> dict[str, str]:
    """Key -> why the plan gives it its value, "" where the line above says it; in the order of the file."""
    network, points, training = config.network, config.points, config.training
    totals = cumulative_strides(network.strides)
    deepest = [-(-n // s) for n, s in zip(training.patch, totals[-1], strict=True)]
    output_mm = [s * mm for s, mm in zip(per_axis(network.output_stride), grid.spacing_mm, strict=True)]
    return {
        "arm": (
            f"`{ARM}` is the network below: a decoder that stops early and the point head, as in the arm lean_s4; the "
            "study that is named below is that of docs/results.md, on the hippocampus"
        ),
        "data.root": "",
        "data.spacing_mm": spacing_reason(survey, grid, median_mm),
        "network.width": width_reason(survey, network.width),
        "network.kernel": "one slice: nothing to convolve across" if 1 in training.patch else "",
        "network.down": "the small body of the lean arms: one convolution a stage, two in the deep ones",
        "network.up": "",
        "network.strides": (
            f"an axis is halved while {SMALLEST_EDGE} voxels or more are left, and waits while it is {UNEQUAL:g} times "
            f"as coarse as another: {times(totals[-1])} in all, which leaves {by(deepest)} voxels of the patch"
        ),
        "network.norm": "of each sample by itself: a batch is small",
        "network.output_stride": output_reason(network.output_stride, output_mm),
        "points.num_points": f"N for a patch of {by(training.patch)}: as dense at surfaces as 2048 in 48x64x48",
        "points.width": "a hidden channel a class" if points.width > 64 else "",
        "points.refine_fraction": (
            "the most uncertain voxels, which the head decides: 0.06 as in the study; less where the labels have "
            "little surface for the size of the volume, more (up to 0.25) where they have much"
        ),
        "training.steps": steps_reason(survey, config),
        "training.batch": "2, or more where patches are small: up to the voxels of a step in the study, at most 8",
        "training.patch": patch_reason(grid, memory_mib),
        "training.mirror": "none; name the axes, of z, y and x, along which a mirrored image is still a likely one",
        "training.validate_every": "four validations in all",
        "study.arms": (
            'to compare with the usual V-Net: {"dense": {}, "planned": {}}, and below comparisons: ["planned - dense"]'
        ),
    }


def spacing_reason(survey: Survey, grid: Grid, median_mm: Spacing) -> str:
    low, high = (round_off(part(survey.spacings_mm, 0)) for part in (np.min, np.max))
    median = np.median(survey.spacings_mm, 0)
    text = "the spacing of every case" if low == high else f"the median of the cases, which have {low} to {high}"
    if any(mm < 0.999 * middle for mm, middle in zip(median_mm, median, strict=True)):
        text += "; of the thick slices the 10th percentile"
    if grid.spacing_mm != median_mm:
        text = (
            f"coarser than {round_off(median_mm)}, {text}, so that a patch sees {grid.seen:.0%} of a volume; labels "
            "are made on the grid of each image all the same"
        )
    return f"{text}; a volume has {by(grid.size)} voxels there"


def width_reason(survey: Survey, width: int) -> str:
    if width == 8:
        return "channels of the first stage, as in the study"
    if 8 * (width // 2) < survey.classes:
        return f"the decoder ends with 8 times as many channels: at least one for each of the {survey.classes} classes"
    return f"at least the {len(survey.modalities)} channels of the image"


def output_reason(output_stride: int | Axes, output_mm: Sequence[float]) -> str:
    stride = per_axis(output_stride)
    text = f"the decoder stops at {by(round_off(output_mm))} mm and the head decides what is finer"
    slow = [axis for axis, s in zip("zyx", stride, strict=True) if s < max(stride)]
    return f"{text}; {' and '.join(slow)} is halved less above, so it has the smaller stride" if slow else text


def steps_reason(survey: Survey, config: Config) -> str:
    steps = config.training.steps
    if steps == MOST_STEPS:
        return f"no more than {MOST_STEPS}, although a voxel is then seen less than {STUDY_PASSES} times"
    if steps == FEWEST_STEPS:
        return f"at least {FEWEST_STEPS}, as in the study; three times as many still help there"
    return f"every voxel of the {survey.training} training cases is seen {STUDY_PASSES} times, as in the study"


def patch_reason(grid: Grid, memory_mib: float) -> str:
    total = cumulative_strides(grid.strides)[-1]
    multiple = f"multiples of {by(total)}, so that nothing more is padded"
    if all(p >= n for p, n in zip(grid.patch, grid.size, strict=True)):
        return f"the whole median volume, {by(grid.size)}, in {multiple}"
    return (
        f"the largest that fits in {memory_mib:.0f} MiB (--memory_mib), in {multiple}; it sees {grid.seen:.0%} of the "
        "median volume, larger volumes are cut and tiled"
    )


def by(values: Sequence[float]) -> str:
    """`20x192x192`, (z, y, x)."""
    return "x".join(f"{value:g}" for value in values)


def times(values: Sequence[int]) -> str:
    """`4, 16 and 16 times` along z, y and x."""
    z, y, x = values
    return f"{z}, {y} and {x} times (z, y, x)"
