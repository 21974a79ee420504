"""Tiles and prediction: known-answer networks, no seams, the same anatomy in every orientation, the image's grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pointrend.refine import PointRend
from vnet.core.config import PointsConfig, load_config
from vnet.core.errors import InputError, RunFault
from vnet.data.affines import file_affine
from vnet.data.preprocessing import Channel, Preprocessing
from vnet.data.volumes import read_image, volume_from_array, write_labels
from vnet.inference.ensemble import predict_volume
from vnet.inference.label_files import predict_files
from vnet.inference.predictor import Predictor
from vnet.inference.segment import segment
from vnet.inference.tiling import Blend, TileGrid, gaussian_window, lay_tiles
from vnet.model.checkpoints import read_checkpoint, save_checkpoint
from vnet.model.network import VNetOutput
from vnet.model.segmenter import Segmenter, build_model
from vnet.training.run import train_run


class Averaging(nn.Module):
    """A network whose answer is known: logits 0 and the image, averaged over stride x stride x stride voxels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.output_stride = (stride, stride, stride)
        self.logits = nn.Conv3d(1, 2, 1)  # for its number of classes
        self.calls = 0

    def forward(self, image: Tensor) -> VNetOutput:
        self.calls += 1
        means = F.avg_pool3d(image, self.output_stride)
        return VNetOutput(torch.cat([torch.zeros_like(means), means], dim=1), {"encoder1": image})

    def first_stage(self, image: Tensor) -> Tensor:
        return image


class Known(PointRend):
    """A head whose answer at a point is the image there against 0."""

    def predict_points(
        self, points: Tensor, coarse: Tensor, features: Mapping[str, Tensor], image: Tensor | None = None, **_: object
    ) -> Tensor:
        from pointrend.reading import sample_at

        fine = sample_at(features["encoder1"], points)
        return torch.cat([torch.zeros_like(fine), fine], dim=1)


def known_model(stride: int, *, head: bool = False) -> Segmenter:
    points = PointsConfig(features=("encoder1",), image=False)
    made = Known(classes=2, features={"encoder1": 1}) if head else None
    return Segmenter(Averaging(stride), made, points=points).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("size", [(7, 9, 11), (16, 16, 16), (37, 29, 23), (8, 40, 20)])
def test_an_identity_network_gives_the_sign_of_every_voxel(size: tuple[int, int, int], overlap: float) -> None:
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    got = segment(known_model(1), image, size, patch=(16, 16, 16), overlap=overlap, refine=True, refine_fraction=0.5)
    np.testing.assert_array_equal(got.labels, (image[0] > 0).numpy())


def test_a_constant_has_no_seams() -> None:
    image = torch.ones(1, 37, 29, 45)
    got = segment(
        known_model(2), image, (50, 41, 60), patch=(16, 16, 16), overlap=0.25, refine=False, refine_fraction=0
    )
    assert (got.labels == 1).all()


@pytest.mark.parametrize("size", [(15, 18, 21), (37, 29, 23)])
def test_tiles_agree_with_one_pass(size: tuple[int, int, int]) -> None:
    """A network that looks at no neighbour gives the same logits in any tile."""
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    one = segment(
        known_model(2), image, (30, 31, 32), patch=(48, 48, 48), overlap=0.25, refine=False, refine_fraction=0
    )
    many = segment(
        known_model(2), image, (30, 31, 32), patch=(16, 8, 16), overlap=0.25, refine=False, refine_fraction=0
    )
    assert (one.labels != many.labels).mean() < 2e-3  # cells at the canvas's end see its padding differently


@pytest.mark.parametrize("patch", [(16, 16, 16), (40, 40, 40)])
@pytest.mark.parametrize("room", [0, 30_000, 2**30])
def test_refining_every_voxel_asks_the_head_everywhere(
    patch: tuple[int, int, int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head sees the image itself, so that all refined labels are its sign: points land where they belong, from
    kept and from recomputed features."""
    monkeypatch.setattr("vnet.inference.segment.saved_bytes", lambda *_: 0)
    monkeypatch.setattr("vnet.inference.segment.KEPT_BYTES", room)
    size = (37, 29, 23)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(2))
    got = segment(known_model(2, head=True), image, size, patch=patch, overlap=0.25, refine=True, refine_fraction=1.0)
    assert len(got.index) == image.numel()
    np.testing.assert_array_equal(got.labels, (image[0] > 0).numpy())
    assert (got.unrefined != got.labels).any()


def test_refined_voxels_are_those_that_changed_and_no_others() -> None:
    size = (24, 32, 16)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))
    got = segment(
        known_model(2, head=True), image, size, patch=(16, 16, 16), overlap=0.25, refine=True, refine_fraction=0.06
    )
    assert len(got.index) == round(0.06 * image.numel())
    outside = np.ones(image.numel(), bool)
    outside[got.index] = False
    np.testing.assert_array_equal(got.labels.ravel()[outside], got.unrefined.ravel()[outside])
    np.testing.assert_array_equal(got.labels.ravel()[got.index], (image[0].ravel() > 0).numpy()[got.index])


def test_a_margin_bounds_what_is_refined() -> None:
    image = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    model = known_model(2, head=True)
    got = segment(
        model, image, (16, 16, 16), patch=(16, 16, 16), overlap=0, refine=True, refine_fraction=1.0, max_margin=0.1
    )
    assert 0 < len(got.index) < 4096
    assert (-got.uncertainty <= 0.1).all()


def test_the_target_grid_may_be_finer() -> None:
    """A ramp along x that changes sign in the middle: so do the labels, on a grid of 3 x its size."""
    ramp = torch.linspace(-1, 1, 16).expand(1, 16, 16, 16).clone()
    size = (48, 20, 47)
    got = segment(
        known_model(2, head=True), ramp, size, patch=(16, 16, 16), overlap=0, refine=True, refine_fraction=0.3
    )
    expected = (np.arange(47) + 0.5) / 47 > 0.5
    np.testing.assert_array_equal(got.labels, np.broadcast_to(expected, size))


# --- orientation -----------------------------------------------------------------------------------------------------


def real_model() -> tuple[Segmenter, Preprocessing]:
    config = load_config(
        ["--arm", "pointrend_s2", "--network.width", "4", "--network.kernel", "3", "--network.norm", "instance"]
    )
    model = build_model(config, in_channels=1, classes=3).eval()
    return model, Preprocessing((1.0, 1.5, 1.2), (Channel("zscore"),))


ORIENTATIONS = ["LPS", "RAS", "SAR", "PIR", "ASL"]


@pytest.mark.parametrize("oblique_degrees", [0.0, 25.0])
@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_a_turned_copy_gives_the_same_anatomy(axes: str, oblique_degrees: float) -> None:
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    voxels = np.random.default_rng(5).normal(size=(30, 34, 38)).astype(np.float32)
    voxels = np.asarray(F.avg_pool3d(torch.from_numpy(voxels)[None], 5, 1, 2)[0])
    affine = file_affine((38, 34, 30), (1.1, 0.9, 1.3), "RAS", oblique_degrees)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(axes)))
    turned = apply_orientation(voxels, turn)
    turned_affine = affine @ inv_ornt_aff(turn, voxels.shape)
    model, preprocessing = real_model()
    config = load_config(["--arm", "pointrend_s2", "--training.patch", "[32,32,32]"])

    def labels(image: np.ndarray, image_affine: np.ndarray) -> np.ndarray:
        volume = volume_from_array(image, image_affine)
        return volume.restore(predict_volume(model, volume, preprocessing, config).labels)

    plain = labels(voxels, affine)
    assert len(np.unique(plain)) > 1
    np.testing.assert_array_equal(apply_orientation(plain, turn), labels(turned, turned_affine))


@pytest.mark.parametrize(
    ("axes", "oblique_degrees", "spacing_mm"),
    [
        ("RAS", 0.0, (1.0, 1.0, 1.0)),
        ("LPS", 30.0, (1.2, 1.0, 0.8)),
        ("SRA", 20.0, (1.0, 1.1, 0.9)),
        ("PIR", 8.0, (5, 0.7, 0.7)),
    ],
)
def test_a_body_lies_where_it_is_however_it_was_scanned(
    axes: str, oblique_degrees: float, spacing_mm: tuple[float, float, float]
) -> None:
    """An ellipsoid off the middle, known in mm of the patient; the network marks where the image is above 0."""
    size = [round(60 / s) for s in spacing_mm]
    affine = file_affine(size, spacing_mm, axes, oblique_degrees)
    shape = [size["SAR".index(code)] for code in axes.translate(str.maketrans("IPL", "SAR"))]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    inside = (((mm - [5, -4, 3]) / [14, 10, 12]) ** 2).sum(-1)
    image = (1 - inside).astype(np.float32)
    volume = volume_from_array(image, affine)
    config = load_config(["--arm", "pointrend_s2", "--training.patch", "[32,32,32]", "--points.refine_fraction", "0.1"])
    got = predict_volume(known_model(2, head=True), volume, Preprocessing((1.0, 1.0, 1.0), (Channel("none"),)), config)
    labels = volume.restore(got.labels)
    assert labels.shape == tuple(shape)
    marked = mm[labels == 1]
    np.testing.assert_allclose(marked.mean(0), [5, -4, 3], atol=0.3)
    # half axes of a solid ellipsoid are its deviations times sqrt(5)
    np.testing.assert_allclose(marked.std(0) * np.sqrt(5), [14, 10, 12], rtol=0.05)
    assert len(marked) * np.prod(spacing_mm) == pytest.approx(4 / 3 * np.pi * 14 * 10 * 12, rel=0.05)


# --- a trained run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tiny: list[str]) -> Path:
    return train_run(load_config([*tiny, "--arm", "pointrend_s2"])).folder


def test_files_and_calls_agree_and_keep_the_header(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    written = predict_files(trained, phantoms / "imagesTr", tmp_path / "out")
    images = sorted((phantoms / "imagesTr").glob("*.nii.gz"))
    assert [path.name for path in written] == [path.name for path in images]
    predictor = Predictor(trained)
    for path, image in zip(written, images, strict=True):
        label, scan = nib.load(path), nib.load(image)
        np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
        assert label.shape == scan.shape
        assert label.get_data_dtype() == np.uint8
        assert label.header["sform_code"] == scan.header["sform_code"]
        voxels = np.asarray(label.dataobj)
        np.testing.assert_array_equal(voxels, predictor(scan.get_fdata(dtype=np.float32), scan.affine))


def test_refinement_can_be_switched_off(trained: Path, phantoms: Path) -> None:
    volume = read_image([next((phantoms / "imagesTr").glob("*.nii.gz"))])
    on, off = (
        Predictor(trained).predict(volume),
        Predictor(trained, overrides=["--points.refine", "false"]).predict(volume),
    )
    assert on.refined
    assert not off.refined
    np.testing.assert_array_equal(on.unrefined, off.labels)


def test_last_and_best_are_read_from_their_own_files(trained: Path) -> None:
    path = trained / "checkpoints/best.ckpt"
    state = read_checkpoint(path)
    state["model"]["network.logits.bias"] = torch.arange(len(state["structures"])).float()
    save_checkpoint(path, {name: value for name, value in state.items() if name != "format"})
    last, best = (Predictor(trained, checkpoint=name).model.network.logits.bias for name in ("last", "best"))
    assert best.tolist() == list(range(len(state["structures"])))
    assert last.tolist() != best.tolist()


def test_refusals(trained: Path, phantoms: Path, tmp_path: Path) -> None:
    images = phantoms / "imagesTr"
    with pytest.raises(InputError, match="not a run .*name a folder RUN_ROOT"):
        predict_files(tmp_path, images, tmp_path / "out")
    with pytest.raises(InputError, match="--input .*nowhere: no such file or folder"):
        predict_files(trained, "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="no NIfTI file"):
        predict_files(trained, trained, tmp_path / "out")
    with pytest.raises(InputError, match="is the image itself; name another folder"):
        predict_files(trained, images, images)
    with pytest.raises(InputError, match="--checkpoint must be last or best, got first"):
        predict_files(trained, images, tmp_path / "out", checkpoint="first")
    with pytest.raises(InputError, match="unknown key points.refin; did you mean points.refine"):
        predict_files(trained, images, tmp_path / "out", overrides=["--points.refin", "false"])
    with pytest.raises(InputError, match=r"last.ckpt: checkpoint of another network: .*use the config"):
        predict_files(trained, images, tmp_path / "out", overrides=["--network.width", "8"])
    assert not (tmp_path / "out").exists()


def test_a_bad_scan_does_not_cost_the_others(
    trained: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "scans"
    source.mkdir()
    good = sorted((phantoms / "imagesTr").glob("*.nii.gz"))[:2]
    for file in good:
        (source / file.name).write_bytes(file.read_bytes())
    (source / "a_torn.nii.gz").write_bytes(good[0].read_bytes()[:-500])
    with pytest.raises(RunFault, match=r"a_torn.nii.gz: .*(truncated|torn|cut)") as caught:
        predict_files(trained, source, tmp_path / "out")
    assert (caught.value.exit_code, len(caught.value.faults)) == (3, 1)
    assert "labelled 2 of 3 images" in capsys.readouterr().out
    beside = ["structures.ctbl", "structures_itksnap.txt", "volumes.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*(file.name for file in good), *beside]
    for file in good:
        (source / file.name).unlink()
    with pytest.raises(InputError, match="a_torn.nii.gz: ") as caught:
        predict_files(trained, source, tmp_path / "none")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("damage", ["torn", "pickle", "foreign"])
def test_a_bad_checkpoint_is_refused_unread(trained: Path, damage: str, tmp_path: Path) -> None:
    path = trained / "checkpoints/last.ckpt"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "pickle":
        torch.save({"format": 1, "model": Path("x")}, path)
    else:
        torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"last.ckpt: not a checkpoint of this project"):
        Predictor(trained)


def test_labels_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    volume = volume_from_array(np.zeros((3, 4, 5), np.float32), np.eye(4))
    target = tmp_path / "label.nii.gz"
    write_labels(target, np.ones((5, 4, 3), np.uint8), volume)
    before = target.read_bytes()
    with pytest.raises(ValueError, match="labels must be"):
        write_labels(target, np.ones((3, 4, 5), np.uint8), volume)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["label.nii.gz"]


# --- tiles -----------------------------------------------------------------------------------------------------------


SIZES = st.tuples(*[st.integers(1, 70)] * 3)
TILES = st.tuples(*[st.integers(1, 6).map(lambda n: 4 * n)] * 3)
STRIDES = st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 4, 4), (1, 2, 4)])


def owners(grid: TileGrid, points: torch.Tensor) -> torch.Tensor:
    """(N,) number of the tile that points (N, 3) of the canvas's unit cube are nearest to."""
    number = torch.zeros(len(points), dtype=torch.int64)
    for axis, starts in enumerate(grid.starts):
        number = number * len(starts) + grid.nearest(axis, points[:, axis].contiguous() * grid.canvas[axis])
    return number


@given(size=SIZES, tile=TILES, stride=STRIDES, overlap=st.sampled_from([0.0, 0.25, 0.5]))
@settings(deadline=None, max_examples=60)
def test_blending_an_identity_network_gives_the_volume_back(
    size: tuple[int, ...], tile: tuple[int, int, int], stride: tuple[int, int, int], overlap: float
) -> None:
    grid = lay_tiles(size, tile, overlap=overlap, align=stride)
    assert all(c >= n and c % s == 0 for c, n, s in zip(grid.canvas, size, stride, strict=True))
    blend = Blend(classes=2, grid=grid, stride=stride)
    coarse = torch.randn(2, *blend.size)
    for corner in grid.corners():
        here = [slice(c // s, (c + t) // s) for c, t, s in zip(corner, tile, stride, strict=True)]
        blend.add(coarse[(slice(None), *here)], corner)
    torch.testing.assert_close(blend.result(), coarse)


@given(size=SIZES, tile=TILES, stride=STRIDES)
@settings(deadline=None, max_examples=60)
def test_a_point_belongs_to_the_tile_with_the_nearest_centre(
    size: tuple[int, ...], tile: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    grid = lay_tiles(size, tile, overlap=0.25, align=stride)
    points = torch.rand(50, 3)
    corners = torch.tensor(grid.corners())
    voxels = points * torch.tensor(grid.canvas)
    distance = (voxels[:, None] - corners - torch.tensor(tile) / 2).abs()  # (N, tiles, 3)
    owner = owners(grid, points)
    chosen = distance[torch.arange(50), owner]
    torch.testing.assert_close(chosen, distance.amin(1), atol=1e-3, rtol=1e-4)
    for number, corner in enumerate(grid.corners()):
        local = grid.to_tile(points[owner == number], corner)
        assert ((local > -1e-5) & (local < 1 + 1e-5)).all()
        for axis, part in enumerate(grid.owned(number)):
            place = local[:, axis] * tile[axis]
            assert ((place > part.start - 1e-3) & (place < part.stop + 1e-3)).all()


def test_owned_parts_leave_out_the_overlap() -> None:
    grid = lay_tiles((16, 16, 100), (16, 16, 40), overlap=0.5, align=(2, 2, 2))
    assert grid.starts[2] == (0, 20, 40, 60)
    # borders lie 10 voxels within the tiles
    assert [grid.owned(number)[2] for number in range(4)] == [
        slice(0, 30),
        slice(10, 30),
        slice(10, 30),
        slice(10, 40),
    ]


def test_neighbours_overlap_as_asked() -> None:
    grid = lay_tiles((100, 100, 100), (40, 40, 40), overlap=0.5, align=(2, 2, 2))
    starts = torch.tensor(grid.starts[0])
    assert starts[0] == 0
    assert starts[-1] == 60
    assert (starts.diff() <= 20).all()


def test_a_small_volume_is_one_tile() -> None:
    grid = lay_tiles((35, 51, 35), (48, 64, 48), overlap=0.25, align=(2, 2, 2))
    assert grid.canvas == (48, 64, 48)
    assert grid.corners() == [(0, 0, 0)]


def test_the_window_is_highest_in_the_middle_and_the_same_from_both_sides() -> None:
    window = gaussian_window((5, 6, 7))
    assert window.argmax() in [(2 * 6 + 2) * 7 + 3, (2 * 6 + 3) * 7 + 3]
    torch.testing.assert_close(window, window.flip(0, 1, 2))
    assert float(window.min()) >= 1e-3
