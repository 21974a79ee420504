"""Sheets have the thickness and the noise that they are said to have."""

from __future__ import annotations

import numpy as np
import pytest

from vnet.core.errors import InputError
from vnet.data.dataset import open_dataset
from vnet.data.phantoms import SheetKind, write_phantoms
from vnet.data.phantoms.sheets import make_sheet
from vnet.data.volumes import read_label


@pytest.mark.parametrize("number", [0, 1, 2])
def test_twice_as_thick_is_twice_the_volume(number: int) -> None:
    kinds = [SheetKind(thickness_vox=(t,), noise=(0.1,)) for t in (2.0, 4.0)]
    thin, thick = (make_sheet(number, 5, kind)[1] for kind in kinds)
    assert thick.sum() / thin.sum() == pytest.approx(2, rel=0.15)
    assert (thin <= thick).all()


def test_noise_is_added_to_the_same_sheet() -> None:
    quiet, loud = (make_sheet(3, 0, SheetKind(thickness_vox=(3.0,), noise=(s,))) for s in (0.0, 0.5))
    np.testing.assert_array_equal(quiet[1], loud[1])
    assert np.std(loud[0].astype(float) - quiet[0]) == pytest.approx(500, rel=0.03)
    # the contrast between sheet and surroundings is 1000, less partial volume
    means = [quiet[0][0][quiet[1] == label].mean() for label in (0, 1)]
    assert means[1] - means[0] == pytest.approx(850, abs=150)


def test_every_pair_of_thickness_and_noise_comes_and_is_written_down(tmp_path) -> None:
    kind = SheetKind(size=(16, 18, 20), thickness_vox=(1.0, 3.0), noise=(0.1, 0.2))
    write_phantoms(tmp_path / "sheets", 5, kind=kind)
    rows = (tmp_path / "sheets" / "properties.csv").read_text().splitlines()
    assert rows[0] == "case,thickness_vox,noise"
    assert [row.split(",", 1)[1] for row in rows[1:]] == ["1,0.1", "3,0.1", "1,0.2", "3,0.2", "1,0.1"]
    dataset = open_dataset(tmp_path / "sheets")
    assert dataset.structures == ("background", "sheet")
    first = read_label(dataset.cases[0].label).array
    np.testing.assert_array_equal(first, make_sheet(0, 0, kind)[1])


def test_refusals() -> None:
    with pytest.raises(InputError, match="thickness_vox must be positive, got 0"):
        SheetKind(thickness_vox=(0.0,))
    with pytest.raises(InputError, match="size must be 16 voxels or more an axis"):
        SheetKind(size=(8, 16, 16))
