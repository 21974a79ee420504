"""Which cases are shown, and what lies beside the tables."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from vnet.data.dataset import Dataset
from vnet.report.case_pictures import CasePicture, pick_extremes, png, write_pictures
from vnet.report.slices import cut_slices


def case(name: str, dice: float) -> CasePicture:
    truth = np.zeros((5, 6, 7), np.uint8)
    truth[1:4, 2:5, 2:6] = 1
    return CasePicture(
        name, dice, cut_slices(np.random.default_rng(0).random(truth.shape), {"truth": truth}, (1, 1, 1))
    )


def names(*cases: CasePicture) -> dict[str, str]:
    return {rank: one.name for rank, one in pick_extremes(cases).items()}


def dataset(**source: str) -> Dataset:
    return Dataset(Path(), "Toy", ("background", "organ"), ("MRI",), None, (), source=source)


def test_worst_median_and_best() -> None:
    assert names(case("a", 0.9), case("b", 0.1), case("c", 0.5)) == {"worst": "b", "median": "c", "best": "a"}
    four = [case(name, dice) for name, dice in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True)]
    assert names(*four) == {"worst": "d", "median": "c", "best": "a"}
    assert names(case("b", 0.5), case("a", 0.5), case("c", 0.5)) == {"worst": "a", "median": "b", "best": "c"}


def test_few_cases_and_cases_without_structures() -> None:
    assert names() == {}
    assert names(case("a", math.nan)) == {}
    assert names(case("a", 0.2), case("b", math.nan)) == {"worst": "a"}
    assert names(case("a", 0.2), case("b", 0.1)) == {"worst": "b", "best": "a"}


def test_pictures_replace_those_of_before_and_name_their_source(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder, [case("a/1", 0.2), case("b", 0.9)], dataset())
    assert sorted(file.name for file in folder.iterdir()) == ["best_b.png", "worst_a_1.png"]
    source = {"reference": "A hospital", "licence": "CC-BY-SA 4.0"}
    written = write_pictures(folder, [case("b", 0.2), case("c", 0.9)], dataset(**source))
    assert sorted(file.name for file in folder.iterdir()) == ["SOURCE.md", "best_c.png", "worst_b.png"]
    assert [file.name for file in written] == ["worst_b.png", "best_c.png"]
    note = (folder / "SOURCE.md").read_text()
    assert "data set Toy" in note
    assert "- licence: CC-BY-SA 4.0" in note
    assert all(file.stat().st_size < 100_000 for file in written)


def test_no_cases_write_nothing(tmp_path: Path) -> None:
    assert write_pictures(tmp_path / "pictures", [], dataset(licence="CC0")) == []
    assert not (tmp_path / "pictures").exists()


def test_the_colours_of_a_png_stay_close() -> None:
    picture = case("a", 0.5).draw("worst", 120)
    again = np.asarray(Image.open(io.BytesIO(png(picture))).convert("RGB")).astype(int)
    assert again.shape == picture.shape
    assert np.abs(again - picture).mean() < 4
