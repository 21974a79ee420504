"""Plans by kind of data, their cost against built networks, and the command from a folder to a trained run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.fixtures import run_vnet
from vnet.core.config import Config, cumulative_strides, load_config, per_axis
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import Survey, survey_dataset
from vnet.data.facts import face_area_mm2
from vnet.data.phantoms import PhantomKind, write_phantoms
from vnet.model.segmenter import build_model, count_multiply_adds
from vnet.training.cost import convolutions, estimate_step, head_layers, measure_step
from vnet.training.grid import halvings, native_spacing
from vnet.training.plan import Plan, dense_of, make_plan

MIB = 4096


def survey(*cases: tuple[tuple[int, int, int], tuple[float, float, float]], **changes) -> Survey:
    """(D, H, W) and spacing of some cases; 100 of them train, one channel, two structures, the study's surface."""
    known = {"training": 100, "modalities": ("MRI",), "classes": 3, "surface_per_mm": 0.045}
    shapes, spacings = zip(*cases, strict=True)
    return Survey(root="DATA/some", name="Some", shapes=shapes, spacings_mm=spacings, **(known | changes))


ALL, FLAT = (2, 2, 2), (1, 2, 2)  # halved along every axis; within the slices
KINDS = {
    "isotropic MR": survey(((160, 192, 160), (1, 1, 1))),
    "thick slices": survey(((20, 512, 512), (5, 0.7, 0.7))),
    "twenty slices": survey(((20, 256, 256), (4, 1, 1))),
    "hippocampus": survey(((35, 50, 35), (1, 1, 1)), training=166),
    "large CT": survey(((300, 512, 512), (1, 0.8, 0.8)), modalities=("CT",), classes=2, surface_per_mm=0.001),
    "four channels": survey(((155, 240, 240), (1, 1, 1)), modalities=("T1", "T1c", "T2", "FLAIR"), classes=4),
    "many classes": survey(((300, 250, 250), (1.5, 1.5, 1.5)), classes=118, surface_per_mm=0.02),
    "ignore label": survey(((64, 64, 64), (1, 1, 1)), ignore=3),
    "mixed spacings": survey(
        ((40, 200, 200), (3, 0.8, 0.8)), ((120, 256, 256), (1, 1, 1)), ((20, 180, 180), (6, 1, 1))
    ),
    "one slice": survey(((1, 256, 256), (1, 1, 1))),
    "smaller than two edges": survey(((5, 6, 7), (1, 1, 1)), training=3),
}
# spacing, patch, halvings, output stride
CHOSEN = {
    "isotropic MR": ((1, 1, 1), (160, 160, 160), (ALL, ALL, ALL, ALL), (4, 4, 4)),
    "thick slices": ((5, 0.7, 0.7), (20, 336, 352), (FLAT, FLAT, ALL, ALL), (1, 4, 4)),
    "twenty slices": ((4, 1, 1), (20, 256, 256), (FLAT, FLAT, ALL, ALL), (1, 4, 4)),
    "hippocampus": ((1, 1, 1), (40, 56, 40), (ALL, ALL, ALL), (4, 4, 4)),
    "large CT": ((1.25, 1, 1), (144, 176, 176), (ALL, ALL, ALL, ALL), (4, 4, 4)),
    "four channels": ((1, 1, 1), (144, 160, 160), (ALL, ALL, ALL, ALL), (4, 4, 4)),
    "many classes": ((2.25, 2.25, 2.25), (64, 80, 80), (ALL, ALL, ALL, ALL), (4, 4, 4)),
    "ignore label": ((1, 1, 1), (64, 64, 64), (ALL, ALL, ALL, ALL), (4, 4, 4)),
    "mixed spacings": ((3, 1, 1), (40, 192, 192), (FLAT, ALL, ALL, ALL), (2, 4, 4)),
    "one slice": ((1, 1, 1), (1, 256, 256), (FLAT, FLAT, FLAT, FLAT), (1, 4, 4)),
    "smaller than two edges": ((1, 1, 1), (5, 6, 8), ((1, 1, 2),), (1, 1, 1)),
}
# width, batch, points, hidden channels of the head, steps
SIZES = {
    "isotropic MR": (8, 2, 8192, 64, 1000),
    "thick slices": (8, 2, 8192, 64, 1400),
    "hippocampus": (8, 2, 2048, 64, 1100),
    "large CT": (8, 2, 8192, 64, 5900),
    "many classes": (16, 2, 2048, 128, 8900),
    "one slice": (8, 4, 2048, 64, 1000),
    "smaller than two edges": (8, 8, 60, 64, 1000),
}


def plain(text: str) -> str:
    """A file of YAML on one line, without the marks of comments."""
    return " ".join(text.replace("#", " ").split())


def planned(kind: str) -> Plan:
    return make_plan(KINDS[kind], memory_mib=MIB, cores=2)


@pytest.mark.parametrize("kind", CHOSEN)
def test_grid_and_strides_of_each_kind(kind: str) -> None:
    config = planned(kind).config
    found = (config.data.spacing_mm, config.training.patch, config.network.strides, config.network.output_stride)
    assert found == CHOSEN[kind]


@pytest.mark.parametrize("kind", SIZES)
def test_what_grows_with_classes_patch_and_cases(kind: str) -> None:
    config = planned(kind).config
    points, training = config.points, config.training
    assert (config.network.width, training.batch, points.num_points, points.width, training.steps) == SIZES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_plan_and_nothing_is_padded_or_beyond_memory(kind: str, tmp_path: Path) -> None:
    plan = planned(kind)
    (tmp_path / "my.yaml").write_text(plan.to_yaml())
    read = load_config(["--config", str(tmp_path / "my.yaml")])
    assert read.to_dict() == plan.config.to_dict() | {"name": "my"}
    total = cumulative_strides(read.network.strides)[-1]
    assert all(n % s == 0 for n, s in zip(read.training.patch, total, strict=True))
    assert plan.estimate.memory_mib <= MIB


def test_slices_are_neither_padded_nor_halved_in_vain() -> None:
    """20 slices of 4 mm, as `patch: [48, ...]` halved four times was not."""
    text = planned("twenty slices").to_yaml()
    assert "  patch: [20, 256, 256]\n" in text
    assert "4, 16 and 16 times (z, y, x) in all, which leaves 5x16x16 voxels" in plain(text)
    assert "the decoder stops at 4x4x4 mm" in text
    assert "z is halved less above, so it has the smaller stride" in plain(text)


def test_reasons_name_what_they_rest_on() -> None:
    def words(kind: str) -> str:
        return plain(planned(kind).to_yaml())

    first = "1 labelled case, 100 of them in the training of fold 0; 1 channel (MRI), 2 structures. Voxels of label 3"
    assert first in words("ignore label")
    assert "which have (1.0, 0.8, 0.8) to (6.0, 1.0, 1.0); a volume has" in words("mixed spacings")
    assert "coarser than (1.0, 0.8, 0.8), the spacing of every case, so that a patch sees" in words("large CT")
    assert "at least one for each of the 118 classes width: 16" in words("many classes")
    assert "the largest that fits in 4096 MiB (--memory_mib), in multiples of 16x16x16" in words("four channels")
    assert "estimated for 2 CPU cores from steps on 2 cores of an AMD EPYC" in words("hippocampus")


def test_many_channels_get_a_first_stage_that_holds_them() -> None:
    case = ((40, 40, 40), (1, 1, 1))
    widths = [make_plan(survey(case, modalities=("x",) * n), memory_mib=MIB, cores=1).config for n in (8, 9)]
    assert [config.network.width for config in widths] == [8, 16]


def test_thick_slices_take_their_tenth_percentile_no_finer_than_pixels() -> None:
    cases = [((20, 200, 210), (float(mm), 0.5, 0.6)) for mm in range(1, 12)]
    assert native_spacing(survey(*cases)) == (2.0, 0.5, 0.6)
    cases = [((20, 200, 210), (mm, 0.5, 0.6)) for mm in (0.1, 0.2, 4, 5, 6)]
    assert native_spacing(survey(*cases)) == (0.6, 0.5, 0.6)
    few = [((90, 200, 210), (float(mm), 0.5, 0.6)) for mm in range(1, 12)]  # as many slices as a volume has pixels
    assert native_spacing(survey(*few)) == (6.0, 0.5, 0.6)


def test_halvings_wait_for_coarse_axes_and_end_at_four_voxels() -> None:
    assert halvings((16, 64, 32), (1, 1, 1)) == (ALL, ALL, (1, 2, 2), (1, 2, 1))
    assert halvings((64, 64, 64), (2, 1, 1)) == (FLAT, ALL, ALL, ALL)
    assert halvings((64, 64, 64), (1.9, 1, 1)) == (ALL, ALL, ALL, ALL)
    assert halvings((7, 16, 17), (1, 1, 1)) == (FLAT, FLAT)
    assert halvings((1, 2, 3), (1, 1, 1)) == ((1, 1, 2),)


def test_more_memory_sees_more_and_too_little_takes_the_smallest_patch() -> None:
    voxels = [
        math.prod(make_plan(KINDS["large CT"], memory_mib=mib, cores=2).config.training.patch)
        for mib in (1, 1000, 2000, 4000, 8000)
    ]
    assert voxels == sorted(set(voxels))
    assert voxels[0] == 8**3


@pytest.mark.parametrize(
    ("surface_per_mm", "share"),
    # 4 mm of output voxel: the study has 0.18 in 4 * 0.045
    [(0.0, 0.01), (0.01, 0.027), (0.0225, 0.06), (0.045, 0.06), (0.09, 0.12), (0.21, 0.25), (3.0, 0.25)],
)
def test_the_share_to_refine_follows_the_surface_of_the_labels(surface_per_mm: float, share: float) -> None:
    plan = make_plan(survey(((64, 64, 64), (1, 1, 1)), surface_per_mm=surface_per_mm), memory_mib=MIB, cores=2)
    assert plan.config.points.refine_fraction == share


def test_a_thicker_output_voxel_refines_more() -> None:
    """As much surface for a mm^3, but 8 mm of output voxel in place of 4."""
    wide = make_plan(survey(((64, 64, 64), (2, 2, 2)), surface_per_mm=0.045), memory_mib=MIB, cores=2)
    assert wide.config.points.refine_fraction == 0.12


SIZE, MM = st.integers(1, 400), st.floats(0.2, 8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.tuples(SIZE, SIZE, SIZE), st.tuples(MM, MM, MM)), min_size=1, max_size=4),
    st.integers(2, 130),
    st.integers(1, 9),
)
def test_any_data_set_has_a_plan(cases: list, classes: int, channels: int) -> None:
    plan = make_plan(survey(*cases, classes=classes, modalities=("x",) * channels), memory_mib=3000, cores=4)
    network, patch = plan.config.network, plan.config.training.patch
    total = cumulative_strides(network.strides)
    assert all(n % s == 0 for n, s in zip(patch, total[-1], strict=True))
    assert per_axis(network.output_stride) in total[:-1]
    assert set(yaml.safe_load(plan.to_yaml())) == {"arm", "data", "network", "points", "training", "study"}


@pytest.mark.parametrize("kind", ["thick slices", "hippocampus", "many classes", "four channels", "one slice"])
@pytest.mark.parametrize("dense", [False, True])
def test_the_cost_counts_what_the_built_network_computes(kind: str, dense: bool) -> None:
    plan, facts = planned(kind), KINDS[kind]
    what = {"channels": len(facts.modalities), "classes": facts.classes}
    config = dense_of(plan.config) if dense else plan.config
    values, weights = [], []
    with torch.device("meta"):
        model = build_model(config, in_channels=what["channels"], classes=what["classes"])
        for module in model.network.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                module.register_forward_hook(lambda one, _, output: values.append(output[0].numel()))
                weights.append(module.weight.numel())
        image = torch.empty(1, what["channels"], *config.training.patch)
        made = count_multiply_adds(model, image)
    layers, head = [*convolutions(config, **what)], [*head_layers(config, **what)]
    assert [layer.values for layer in layers] == values
    assert sorted(layer.weights for layer in layers) == sorted(weights)
    assert estimate_step(config, **what, cores=2).multiply_adds == made
    assert sum(layer.weights for layer in head) == sum(
        p.numel() for p in (model.head.parameters() if model.head else ()) if p.ndim > 1
    )


def test_more_cores_take_less_time_and_the_same_memory() -> None:
    two, eight = (estimate_step(planned("hippocampus").config, channels=1, classes=3, cores=n) for n in (2, 8))
    assert two.seconds == pytest.approx(4 * eight.seconds)
    assert two.memory_mib == eight.memory_mib


def test_a_measured_step_has_the_multiply_adds_of_the_estimate() -> None:
    config = planned("smaller than two edges").config
    cost = measure_step(config, channels=2, classes=3, device=torch.device("cpu"), steps=1)
    assert cost.multiply_adds == estimate_step(config, channels=2, classes=3, cores=1).multiply_adds
    assert cost.seconds > 0
    assert cost.memory_mib > 100


def test_the_survey_counts_labelled_cases_alone(tmp_path: Path) -> None:
    kind = PhantomKind(size=(16, 20, 24), spacing_mm=(3, 1, 1), channels=2, ignore=0.2, vary=False)
    write_phantoms(tmp_path / "data", 5, seed=1, kind=kind)
    dataset = open_dataset(tmp_path / "data")
    facts = check_dataset(dataset, None, progress=False).facts
    found = survey_dataset(dataset, facts)
    assert found.shapes == ((16, 20, 24),) * 5
    assert found.spacings_mm[0] == pytest.approx((3, 1, 1))
    assert (found.training, len(found.modalities), found.classes, found.ignore) == (4, 2, 4, dataset.ignore)
    shares = sorted(fact.surface_mm2 / (16 * 20 * 24 * 3) for fact in facts.values())
    assert found.surface_per_mm == pytest.approx(shares[2])
    assert shares[0] > 0


def test_the_surface_of_a_box_is_that_of_its_faces() -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[1:4, 2:6, 1:6] = 2  # 3x4x5 voxels
    labels[8] = 1  # the last slice: one face a column, none at the edge of the image
    spacing_mm = (3.0, 0.5, 0.7)
    box = 2 * (3 * 4 * 3 * 0.5 + 3 * 5 * 3 * 0.7 + 4 * 5 * 0.5 * 0.7)
    assert face_area_mm2(labels, spacing_mm) == pytest.approx(box + 8 * 7 * 0.5 * 0.7)
    assert face_area_mm2(np.ones((1, 2, 3)), spacing_mm) == 0


def test_from_a_folder_to_a_trained_run(
    own_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_vnet("data", ["check", "own"], capsys)
    assert code == 0
    assert out.splitlines()[-1] == "a config for it: vnet data plan own > my.yaml"
    code, out, err = run_vnet("data", ["plan", "own", "--memory_mib", "800"], capsys)
    assert code == 0
    assert out.startswith("# Planned by `vnet data plan` from Phantoms: 6 labelled cases, 4 of them in ")
    assert "checking volumes 6/6" in err
    assert not any((tmp_path / name).exists() for name in ("runs", "my.yaml"))
    Path("my.yaml").write_text(out)
    words = ["--config", "my.yaml", "--training.steps", "2", "--training.validate_every", "0", "--threads", "1"]
    code, out, err = run_vnet("train", words, capsys)
    assert (code, err) == (0, "")
    assert Path("runs/my/planned/fold0_seed0/cases.csv").is_file()


def test_a_plan_may_time_its_step_and_refuses_no_memory(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_vnet("data", ["plan", str(phantoms), "--measure", "--device", "cpu"], capsys)
    assert code == 0
    assert "Cost, two steps of noise timed on cpu (" in plain(out)
    assert Config(name="plan").to_dict().keys() >= yaml.safe_load(out).keys()
    code, out, err = run_vnet("data", ["plan", str(phantoms), "--memory_mib", "0"], capsys)
    assert (code, out, err) == (2, "", "error: --memory_mib must be positive, got 0.0\n")
