"""Maps on the native grid against dense references, and the files they are written to."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vnet.core.errors import InputError
from vnet.data.volumes import read_image, volume_from_array, write_scaled
from vnet.inference.prediction import logit_slabs, probability_slabs, uncertainty_volume

SIZE = (11, 6, 15)


def coarse_logits(classes: int = 4) -> torch.Tensor:
    return 2 * torch.randn(classes, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("values_at_once", [1, 4 * 6 * 15 * 4, 10**9])
def test_slabs_are_what_interpolate_gives(values_at_once: int) -> None:
    coarse = coarse_logits()
    slabs = list(logit_slabs(coarse, SIZE, (1, 1, 1), values_at_once=values_at_once))
    assert [first for first, _, _ in slabs] == [0, *(last for _, last, _ in slabs[:-1])]
    whole = torch.cat([part for _, _, part in slabs], dim=1)
    torch.testing.assert_close(whole, F.interpolate(coarse[None], SIZE, mode="trilinear")[0])


def test_a_volume_may_fill_a_part_of_the_canvas() -> None:
    """3 x 4 x 5 coarse voxels of stride 4: a volume of 11 x 16 x 14 in a canvas of 12 x 16 x 20."""
    coarse = coarse_logits()
    (_, _, part), *more = logit_slabs(coarse, (11, 16, 14), (11 / 12, 1, 14 / 20))
    dense = F.interpolate(coarse[None], (12, 16, 20), mode="trilinear")[0, :, :11, :, :14]
    assert not more
    torch.testing.assert_close(part, dense, rtol=1e-4, atol=1e-5)


def reference(coarse: torch.Tensor, index: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
    """Dense logits (K, D, H, W) with a head's answers in their place."""
    dense = F.interpolate(coarse[None], SIZE, mode="trilinear")[0].clone()
    dense.reshape(len(dense), -1)[:, torch.from_numpy(index)] = logits
    return dense


def test_uncertainty_is_the_second_share_of_the_two_best() -> None:
    coarse, index = coarse_logits(), np.array([0, 7, 100, 989])
    answers = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    best, second = reference(coarse, index, answers).topk(2, dim=0).values
    share = torch.stack([best, second]).softmax(0)[1]
    top = answers.topk(2, dim=0).values
    got = uncertainty_volume(coarse, SIZE, (1, 1, 1), index, (top[1] - top[0]).numpy())
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
    parts = [part for _, _, part in probability_slabs(coarse, SIZE, (1, 1, 1), where, answers)]
    whole = torch.from_numpy(np.concatenate(parts, axis=1))
    torch.testing.assert_close(whole, reference(coarse, where, answers).softmax(0))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "PIL"])
def test_a_map_lies_as_its_image_does(axes: str, ending: str, tmp_path: Path) -> None:
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    affine = np.diag([1.5, 2, 3, 1]) @ inv_ornt_aff(
        ornt_transform(io_orientation(np.eye(4)), axcodes2ornt(axes)), (3, 4, 5)
    )
    like = volume_from_array(np.zeros((3, 4, 5), np.float32), affine)
    d, h, w = like.array.shape[1:]
    values = np.random.default_rng(0).integers(0, 2**16, (2, d, h, w), dtype=np.uint16)
    path = tmp_path / f"map{ending}"
    write_scaled(path, [(0, 1, values[:, :1]), (1, d, values[:, 1:])], like, dtype=np.uint16, channels=2)
    found = nib.load(path)
    assert found.shape == (3, 4, 5, 2)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    for channel in range(2):
        np.testing.assert_allclose(found.get_fdata()[..., channel], like.restore(values[channel]) / 65535, atol=1e-6)
    np.testing.assert_allclose(read_image([path]).array, values / 65535, atol=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_map_keeps_the_header_of_its_image(tmp_path: Path) -> None:
    scan = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.diag([-2, -2, 3, 1]))
    scan.header["descrip"] = b"scanner"
    scan.header.set_slope_inter(2, -1000)
    nib.save(scan, tmp_path / "scan.nii")
    like = read_image([tmp_path / "scan.nii"])
    write_scaled(
        tmp_path / "map.nii.gz", [(0, 5, np.full((1, 5, 4, 3), 255, np.uint8))], like, dtype=np.uint8, channels=1
    )
    found = nib.load(tmp_path / "map.nii.gz")
    assert found.shape == (3, 4, 5)
    assert found.header["descrip"] == b"scanner"
    assert found.header["sform_code"] == nib.load(tmp_path / "scan.nii").header["sform_code"]
    np.testing.assert_allclose(found.get_fdata(), 1, atol=1e-6)
    np.testing.assert_array_equal(found.affine, scan.affine)


def test_a_map_that_fails_leaves_nothing(tmp_path: Path) -> None:
    like = volume_from_array(np.zeros((3, 4, 5), np.float32), np.eye(4))

    def broken():  # type: ignore[no-untyped-def]
        yield 0, 1, np.zeros((1, 1, 4, 3), np.uint8)
        raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        write_scaled(tmp_path / "map.nii.gz", broken(), like, dtype=np.uint8, channels=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"map.npz: maps are written as .nii or .nii.gz"):
        write_scaled(tmp_path / "map.npz", [], like, dtype=np.uint8, channels=1)
