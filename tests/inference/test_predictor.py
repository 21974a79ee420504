"""Mirroring, ensembles and maps: known answers, the run itself as its twin, and runs that do not fit together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.refine import PointRend
from vnet.core.config import PointsConfig, load_config
from vnet.core.errors import InputError
from vnet.data.volumes import read_image
from vnet.inference.ensemble import clean_components
from vnet.inference.label_files import predict_files
from vnet.inference.prediction import logit_slabs, probability_slabs, uncertainty_volume
from vnet.inference.predictor import Predictor
from vnet.inference.segment import segment, segment_together
from vnet.inference.tiling import mirror_sets
from vnet.model.checkpoints import read_checkpoint, save_checkpoint
from vnet.model.network import VNetOutput
from vnet.model.segmenter import Segmenter
from vnet.training.run import train_run

SIZE = (20, 28, 36)
RULES: dict[str, Any] = {"overlap": 0.25, "refine": True, "refine_fraction": 0.1}


class Ramp(nn.Module):
    """Logits 0 and scale x the image's mean over 2 x 2 x 2 voxels + slopes . place in the tile (-0.5 to 0.5)."""

    def __init__(self, *, scale: float = 1.0, slopes: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        super().__init__()
        self.output_stride, self.scale, self.slopes = (2, 2, 2), scale, slopes
        self.logits = nn.Conv3d(1, 2, 1)  # for its number of classes

    def forward(self, image: Tensor) -> VNetOutput:
        means = self.scale * F.avg_pool3d(image, 2)
        for axis, slope in enumerate(self.slopes):
            n = means.shape[2 + axis]
            place = (torch.arange(n) + 0.5) / n - 0.5
            means = means + slope * place.reshape(-1, *[1] * (2 - axis))
        return VNetOutput(torch.cat([torch.zeros_like(means), means], dim=1), {"encoder1": self.scale * image})

    def first_stage(self, image: Tensor) -> Tensor:
        return self.scale * image


class Echo(PointRend):
    """A head that answers with the coarse logits it is given."""

    def predict_points(self, points: Tensor, coarse: Tensor, *_: object, **__: object) -> Tensor:
        return coarse


class Sharp(PointRend):
    """A head whose answer at a point is the feature there against 0."""

    def predict_points(
        self, points: Tensor, coarse: Tensor, features: Mapping[str, Tensor], image: Tensor | None = None, **_: object
    ) -> Tensor:
        from pointrend.reading import sample_at

        fine = sample_at(features["encoder1"], points)
        return torch.cat([torch.zeros_like(fine), fine], dim=1)


def model(kind: type[PointRend] | None = None, **known: Any) -> Segmenter:
    points = PointsConfig(features=("encoder1",), image=False)
    head = kind(classes=2, features={"encoder1": 1}) if kind else None
    return Segmenter(Ramp(**known), head, points=points).eval()  # type: ignore[arg-type]


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, *SIZE, generator=torch.Generator().manual_seed(seed))


# --- mirroring -------------------------------------------------------------------------------------------------------


def test_every_set_of_the_named_axes_is_seen() -> None:
    assert mirror_sets(()) == [()]
    assert mirror_sets(("x", "z")) == [(), (2,), (0,), (2, 0)]
    assert len(mirror_sets("zyx")) == 8


@pytest.mark.parametrize("room", [0, 30_000, 2**30])
@pytest.mark.parametrize("patch", [(16, 24, 20), (40, 40, 40)])
def test_mirroring_a_symmetric_network_changes_nothing(
    patch: tuple[int, int, int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head reads the image itself, so that a point which lands elsewhere would show."""
    monkeypatch.setattr("vnet.inference.segment.saved_bytes", lambda *_: 0)
    monkeypatch.setattr("vnet.inference.segment.KEPT_BYTES", room)
    plain = segment(model(Sharp), noise(), (25, 28, 40), patch=patch, **RULES)
    mirrored = segment(model(Sharp), noise(), (25, 28, 40), patch=patch, mirror=("z", "y", "x"), **RULES)
    torch.testing.assert_close(mirrored.coarse, plain.coarse)
    np.testing.assert_array_equal(mirrored.index, plain.index)
    np.testing.assert_array_equal(mirrored.labels, plain.labels)
    np.testing.assert_allclose(
        mirrored.refined_uncertainty, plain.refined_uncertainty, atol=1e-4
    )  # points rounded on both sides
    assert (plain.labels != plain.unrefined).any()


@pytest.mark.parametrize(("mirror", "left"), [("x", (0, 1)), ("zx", (1,)), ("zyx", ())])
def test_mirroring_takes_a_bias_towards_an_end_away(mirror: str, left: tuple[int, ...]) -> None:
    slopes = (3.0, 5.0, 7.0)
    got = segment(
        model(slopes=slopes), torch.zeros(1, 8, 12, 16), (8, 12, 16), patch=(8, 12, 16), mirror=tuple(mirror), **RULES
    )
    remaining = tuple(slope if axis in left else 0.0 for axis, slope in enumerate(slopes))
    expected = model(slopes=remaining).network(torch.zeros(1, 1, 8, 12, 16)).logits[0]
    torch.testing.assert_close(got.coarse, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inference.mirror", "[w]"], r"inference.mirror must name axes of z, y, x, each once, got \['w'\]"),
        (["--inference.mirror", "[x,x]"], "inference.mirror must name axes of z, y, x, each once"),
        (["--inference.mirror", "[3]"], "inference.mirror"),
        (["--inference.min_component_mm3", "-1"], "inference.min_component_mm3 must be 0 or more, got -1"),
    ],
)
def test_axes_that_do_not_exist_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(words)


# --- ensembles -------------------------------------------------------------------------------------------------------


def test_the_mean_of_logits_decides() -> None:
    """One network sees the image, the other three times its negative: the mean is the negative."""
    pair = [(model(scale=1.0), noise()), (model(scale=-3.0), noise())]
    got = segment_together(pair, SIZE, patch=(16, 16, 16), **RULES)
    alone = segment(model(scale=-1.0), noise(), SIZE, patch=(16, 16, 16), **RULES)
    torch.testing.assert_close(got.coarse, alone.coarse)
    assert (got.labels != alone.labels).mean() < 1e-4
    assert not got.refined


def test_each_head_answers_from_its_own_network_and_image() -> None:
    """Features are 2 x one image and 1 x another: where refined, the sign of their sum."""
    pair = [(model(Sharp, scale=2.0), noise(1)), (model(Sharp), noise(2))]
    got = segment_together(pair, SIZE, patch=(16, 16, 16), **RULES)
    expected = (2 * noise(1) + noise(2)).flatten()[got.index]
    np.testing.assert_array_equal(got.labels.ravel()[got.index], (expected > 0).numpy())
    np.testing.assert_allclose(got.refined_uncertainty, -np.abs(expected.numpy()) / 2, atol=1e-4)


def test_heads_that_echo_leave_the_mean_as_it_is() -> None:
    """Averaging at points equals averaging on the grid, as it is logits that are averaged."""
    pair = [(model(Echo, scale=2.0), noise(1)), (model(Echo, slopes=(1, 2, 3)), noise(2))]
    got = segment_together(pair, (30, 28, 50), patch=(16, 16, 16), mirror=("y",), **RULES)
    np.testing.assert_allclose(got.refined_uncertainty, got.uncertainty, atol=1e-5)
    sure = got.uncertainty < -1e-5
    np.testing.assert_array_equal(got.labels.ravel()[got.index[sure]], got.unrefined.ravel()[got.index[sure]])


def test_a_model_without_a_head_has_its_say() -> None:
    """Echoing is what it does: the same as with a head that echoes."""
    sharp = model(Sharp), noise(1)
    one = segment_together([sharp, (model(scale=3), noise(2))], SIZE, patch=(16, 16, 16), **RULES)
    two = segment_together([sharp, (model(Echo, scale=3), noise(2))], SIZE, patch=(16, 16, 16), **RULES)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.refined_uncertainty, two.refined_uncertainty, atol=1e-6)


# --- trained runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny: list[str]) -> Path:
    return train_run(load_config([*tiny, "--arm", "pointrend_s2"])).folder


def test_a_run_twice_is_the_run(trained: Path, phantoms: Path) -> None:
    scan = next((phantoms / "imagesTr").glob("*.nii.gz"))
    volume = read_image([scan])
    one, two = Predictor(trained).predict(volume), Predictor([trained, trained]).predict(volume)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.unrefined, two.unrefined)
    np.testing.assert_array_equal(one.index, two.index)
    np.testing.assert_array_equal(one.refined_uncertainty, two.refined_uncertainty)
    np.testing.assert_array_equal(one.uncertainty_volume(), two.uncertainty_volume())


def changed(run: Path, target: Path, **entries: Any) -> Path:
    """A copy of a run whose checkpoint differs in some entries."""
    target.mkdir()
    for name in ("run.json", "config.yaml"):
        (target / name).write_bytes((run / name).read_bytes())
    state = read_checkpoint(run / "checkpoints/last.ckpt")
    rest = {name: value for name, value in state.items() if name != "format"}
    save_checkpoint(target / "checkpoints/last.ckpt", rest | entries)
    return target


def test_runs_that_do_not_fit_together_are_refused(trained: Path, tiny: list[str], tmp_path: Path) -> None:
    state = read_checkpoint(trained / "checkpoints/last.ckpt")
    names = changed(trained, tmp_path / "names", structures=["background", "spleen", "kidney", "vessel"])
    with pytest.raises(InputError, match=r"names: structures \['background', 'spleen'.* differs from .*'liver'"):
        Predictor([trained, names])
    z, y, x = state["preprocessing"]["spacing_mm"]
    near = changed(trained, tmp_path / "near", preprocessing=state["preprocessing"] | {"spacing_mm": [z * 1.03, y, x]})
    Predictor([trained, near])
    far = changed(trained, tmp_path / "far", preprocessing=state["preprocessing"] | {"spacing_mm": [z * 2, y, x]})
    with pytest.raises(InputError, match=r"far: data.spacing_mm .* differs from .*; name runs of one kind"):
        Predictor([trained, far])
    coarser = train_run(load_config([*tiny, "--arm", "dense", "--training.patch", "[16,16,32]"])).folder
    with pytest.raises(InputError) as caught:
        Predictor([trained, coarser])
    assert ["network.output_stride" in line for line in caught.value.faults] == [True, False]
    assert "training.patch [16, 16, 32] differs from [16, 24, 32]" in caught.value.faults[1]
    with pytest.raises(InputError, match="name at least one run"):
        Predictor([])


def test_what_is_saved_is_what_calls_give(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    scan = sorted((phantoms / "imagesTr").glob("*.nii.gz"))[0]
    kinds = ("labels", "uncertainty", "probabilities")
    words = ["--inference.mirror", "[x]", "--inference.largest_component", "true"]
    written = predict_files([trained, trained], scan, tmp_path / "out", save=kinds, overrides=words)
    stem = scan.name.removesuffix(".nii.gz")
    assert [path.name for path in written] == [
        f"{stem}.nii.gz",
        f"{stem}_uncertainty.nii.gz",
        f"{stem}_probabilities.nii.gz",
    ]
    labels, doubt, shares = (nib.load(path) for path in written)
    assert (doubt.get_data_dtype(), shares.get_data_dtype()) == (np.uint8, np.uint16)
    assert shares.shape == (*labels.shape, 4)
    predictor, image = Predictor(trained, overrides=words), nib.load(scan)
    here = image.get_fdata(dtype=np.float32), image.affine
    np.testing.assert_array_equal(np.asarray(labels.dataobj), predictor(*here))
    np.testing.assert_allclose(doubt.get_fdata(), predictor.uncertainty(*here) / 255, atol=1e-6)
    dense = predictor.probabilities(*here)
    np.testing.assert_allclose(shares.get_fdata(), dense, atol=1e-5)
    np.testing.assert_allclose(dense.sum(-1), 1, atol=1e-5)
    uncleaned = Predictor(trained, overrides=words[:2])(*here)
    top = np.sort(dense, axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-4
    np.testing.assert_array_equal(dense.argmax(-1)[clear], uncleaned[clear])


def test_components_are_cleaned_refined_or_not(trained: Path, phantoms: Path) -> None:
    from scipy import ndimage

    volume = read_image([sorted((phantoms / "imagesTr").glob("*.nii.gz"))[0]])
    plain = Predictor(trained).predict(volume)
    got = Predictor(trained, overrides=["--inference.largest_component", "true"]).predict(volume)
    pieces = 0
    for before, after in ((plain.labels, got.labels), (plain.unrefined, got.unrefined)):
        for value in np.unique(before)[1:]:
            pieces += ndimage.label(before == value, np.ones((3, 3, 3)))[1]
            assert ndimage.label(after == value, np.ones((3, 3, 3)))[1] == 1
        assert ((after == before) | (after == 0)).all()
    assert pieces > 6  # there was something to clean


def test_probabilities_need_kept_logits(trained: Path, phantoms: Path) -> None:
    volume = read_image([sorted((phantoms / "imagesTr").glob("*.nii.gz"))[0]])
    with pytest.raises(ValueError, match="keep_logits=True"):
        next(Predictor(trained).predict(volume).probability_slabs())


def test_two_cases_are_not_written_to_one_file(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    scan = next((phantoms / "imagesTr").glob("*.nii.gz"))
    (tmp_path / "in").mkdir()
    for name in ("a", "a_uncertainty"):
        (tmp_path / f"in/{name}.nii.gz").write_bytes(scan.read_bytes())
    with pytest.raises(InputError, match=r"two cases would be written to a_uncertainty.nii.gz; rename"):
        predict_files(trained, tmp_path / "in", tmp_path / "out", save=("labels", "uncertainty"))
    assert not (tmp_path / "out").exists()


def two_pieces() -> np.ndarray:
    """Structure 1: a block of 12 voxels and one of 2; structure 2: one of 3 and one of 3; unequal axes."""
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[0:2, 0:2, 0:3] = 1
    labels[4, 5, 6:8] = 1
    labels[3, 0:3, 0] = 2
    labels[5, 0, 4:7] = 2
    return labels


def test_the_largest_component_of_each_structure_stays_and_a_tie_goes_to_the_first() -> None:
    labels, expected = two_pieces(), two_pieces()
    expected[4, 5, 6:8] = 0
    expected[5, 0, 4:7] = 0
    clean_components(labels, 1.0, largest=True)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("min_mm3", "left"),
    [(0.0, {1: 14, 2: 6}), (12.0, {1: 14, 2: 6}), (12.1, {1: 12, 2: 6}), (18.1, {1: 12, 2: 0}), (72.1, {1: 0, 2: 0})],
)
def test_small_components_go_by_volume_in_mm(min_mm3: float, left: dict[int, int]) -> None:
    labels = two_pieces()
    clean_components(labels, 6.0, min_mm3=min_mm3)
    assert {value: int((labels == value).sum()) for value in (1, 2)} == left


def test_a_corner_joins_and_another_structure_does_not() -> None:
    labels = np.zeros((3, 4, 5), np.uint16)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 300  # a diagonal is one piece
    labels[0, 3, 0:2] = 300
    labels[1, 3, 0] = 7  # touches the piece of 2 and is no part of it
    before = labels.copy()
    before[0, 3, 0:2] = 0
    clean_components(labels, 1.0, largest=True)
    np.testing.assert_array_equal(labels, before)


def test_pieces_in_one_box_do_not_cost_what_lies_between() -> None:
    labels = np.array([[[1, 2, 2, 1, 1]]], np.uint8)
    clean_components(labels, 1.0, largest=True)
    np.testing.assert_array_equal(labels, [[[0, 2, 2, 1, 1]]])


def test_background_alone_stays() -> None:
    labels = np.zeros((3, 4, 5), np.uint8)
    clean_components(labels, 1.0, largest=True, min_mm3=5)
    assert not labels.any()


# --- maps of probability and uncertainty against dense references ----------------------------------------------------


MAP = (11, 6, 15)


def coarse_logits(classes: int = 4) -> torch.Tensor:
    return 2 * torch.randn(classes, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("values_at_once", [1, 4 * 6 * 15 * 4, 10**9])
def test_slabs_are_what_interpolate_gives(values_at_once: int) -> None:
    coarse = coarse_logits()
    slabs = list(logit_slabs(coarse, MAP, (1, 1, 1), values_at_once=values_at_once))
    assert [first for first, _, _ in slabs] == [0, *(last for _, last, _ in slabs[:-1])]
    whole = torch.cat([part for _, _, part in slabs], dim=1)
    torch.testing.assert_close(whole, F.interpolate(coarse[None], MAP, mode="trilinear")[0])


def test_a_volume_may_fill_a_part_of_the_canvas() -> None:
    """3 x 4 x 5 coarse voxels of stride 4: a volume of 11 x 16 x 14 in a canvas of 12 x 16 x 20."""
    coarse = coarse_logits()
    (_, _, part), *more = logit_slabs(coarse, (11, 16, 14), (11 / 12, 1, 14 / 20))
    dense = F.interpolate(coarse[None], (12, 16, 20), mode="trilinear")[0, :, :11, :, :14]
    assert not more
    torch.testing.assert_close(part, dense, rtol=1e-4, atol=1e-5)


def reference(coarse: torch.Tensor, index: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
    """Dense logits (K, D, H, W) with a head's answers in their place."""
    dense = F.interpolate(coarse[None], MAP, mode="trilinear")[0].clone()
    dense.reshape(len(dense), -1)[:, torch.from_numpy(index)] = logits
    return dense


def test_uncertainty_is_the_second_share_of_the_two_best() -> None:
    coarse, index = coarse_logits(), np.array([0, 7, 100, 989])
    answers = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    best, second = reference(coarse, index, answers).topk(2, dim=0).values
    share = torch.stack([best, second]).softmax(0)[1]
    top = answers.topk(2, dim=0).values
    got = uncertainty_volume(coarse, MAP, (1, 1, 1), index, (top[1] - top[0]).numpy())
    assert got.dtype == np.uint8
    assert np.abs(got - 510 * share.numpy()).max() <= 0.501


def test_a_tie_is_255_and_a_sure_answer_0() -> None:
    coarse = torch.zeros(2, 2, 2, 2)
    coarse[1, 1] = 20
    none = np.zeros(0)
    got = uncertainty_volume(coarse, (2, 2, 2), (1, 1, 1), none.astype(int), none.astype(np.float32))
    assert (got[0] == 255).all()
    assert (got[1] == 0).all()


@pytest.mark.parametrize("index", [[], [0, 7, 100, 500, 989]])
def test_probabilities_are_the_softmax_of_dense_logits(index: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnet.inference.prediction.VALUES_AT_ONCE", 4 * 6 * 15 * 4)
    coarse, where = coarse_logits(), np.array(index, np.int64)
    answers = torch.randn(4, len(index), generator=torch.Generator().manual_seed(2))
    parts = [part for _, _, part in probability_slabs(coarse, MAP, (1, 1, 1), where, answers)]
    whole = torch.from_numpy(np.concatenate(parts, axis=1))
    torch.testing.assert_close(whole, reference(coarse, where, answers).softmax(0))
