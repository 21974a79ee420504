"""An evaluation warns of cases that the run was trained on, by the content of their images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.fixtures import RUN, run_vnet, write_volume
from vnet.data.dataset import open_dataset
from vnet.data.folds import select_fold


def renamed_copy(folder: str, names: dict[str, str], turned: str) -> None:
    """The data set with other case names, one case stored along other axes, and one new case."""
    shutil.copytree("data", folder)
    for kind in ("imagesTr", "labelsTr"):
        for old, new in names.items():
            Path(f"{folder}/{kind}/{old}.nii.gz").rename(f"{folder}/{kind}/{new}.nii.gz")
        path = Path(f"{folder}/{kind}/{turned}.nii.gz")
        image = nib.load(path).as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
        write_volume(path, np.asarray(image.dataobj), image.affine)
    label = np.asarray(nib.load(f"{folder}/labelsTr/{turned}.nii.gz").dataobj)
    write_volume(Path(f"{folder}/imagesTr/new.nii.gz"), label.astype(np.float32))
    write_volume(Path(f"{folder}/labelsTr/new.nii.gz"), label)
    cases = [*names.values(), "new"]
    text = json.loads(Path(f"{folder}/dataset.json").read_text())
    text["training"] = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in cases]
    Path(f"{folder}/dataset.json").write_text(json.dumps(text))


def test_cases_that_were_trained_on_are_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = select_fold(open_dataset("data"), 0)
    names = {name: f"other_{name}" for name in (*fold.train, *fold.val)}
    seen = sorted(f"other_{name}" for name in fold.train)
    renamed_copy("other", names, seen[0])
    code, out, err = run_vnet("evaluate", [str(RUN), "--data.root", "other"], capsys)
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("warning")]
    assert line == (
        f"warning: the run was trained on {len(seen)} of {len(names) + 1} cases (the same image): {', '.join(seen)}; "
        "their scores say nothing of new cases"
    )


def test_the_runs_own_fold_is_no_reason_for_a_warning(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_vnet("evaluate", [str(RUN)], capsys)
    assert code == 0
    assert "warning" not in out
