"""The committed results: every run is still done, on the data that the reader of today reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vnet.core.config import load_resolved
from vnet.core.results import KeptRun, RunKey, read_kept_runs
from vnet.core.tables import read_table
from vnet.data.checks import check_dataset
from vnet.data.dataset import open_dataset
from vnet.data.folds import all_folds
from vnet.data.phantoms import SheetKind, write_phantoms
from vnet.training.study import study_configs

ROOT = Path(__file__).parents[2]
# results/nuclei is a study of detectors, made by scripts of its own, with other columns. It is left out by its name, so
# that a damaged table of any other study is not left out with it.
STUDIES = sorted(path.parent for path in (ROOT / "results").glob("*/runs.csv") if path.parent.name != "nuclei")
FILES = {"config.yaml", "runs.csv", "cases.csv", "refinement.csv", "curves.csv", "splits.json", "properties.csv"}


def runs_on(data_set: str) -> list[KeptRun]:
    runs = [run for study in STUDIES for run in read_kept_runs(study).values()]
    return [run for run in runs if run.info["data_set"] == data_set]


def test_the_studies_are_there() -> None:
    counts = {study.name: len(read_kept_runs(study)) for study in STUDIES}
    wanted = {"ablations": 13, "hippocampus": 6, "study_equal_time": 4}
    wanted |= {"study_hippocampus": 24, "study_phantoms": 15, "study_seeds": 9}
    assert {name: counts[name] for name in wanted} == wanted


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_committed_runs_stay_done(study: Path) -> None:
    """Each run's hash is the one that its config gives today: the kept config, and that of configs/."""
    kept = read_kept_runs(study)
    words = ["--config", str(ROOT / f"configs/{study.name}.yaml")]
    today = {RunKey.of(config): config for config, _ in study_configs(words)}
    assert set(kept) <= set(today)  # none belongs to an arm, fold or seed that the config does not name
    for key, run in kept.items():
        assert load_resolved(run.config).hash(run.info["data_hash"]) == run.config_hash, key
        assert today[key].hash(run.info["data_hash"]) == run.config_hash, f"{key} is no longer done"


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_committed_results_are_whole(study: Path) -> None:
    """A table's runs are those of runs.csv, the cases of a fold those of splits.json, and there is nothing else."""
    assert {path.name for path in study.iterdir()} <= FILES
    kept = read_kept_runs(study)
    folds = load_folds(study)
    for name in ("cases.csv", "refinement.csv", "curves.csv"):
        found: dict[RunKey, set[str]] = {}
        for row in read_table(study / name):
            found.setdefault(RunKey(row["arm"], row["fold"], int(row["seed"])), set()).add(row.get("case", ""))
        assert set(found) <= set(kept), name
        if name == "cases.csv":
            assert found == {key: set(folds[int(key.fold)]) for key in kept}


def load_folds(study: Path) -> list[list[str]]:
    return [fold["val"] for fold in json.loads((study / "splits.json").read_text())["folds"]]


@pytest.mark.decathlon
def test_the_content_hash_of_the_hippocampus_data_stays(hippocampus: Path, tmp_path: Path) -> None:
    """What makes committed runs done: a change of the reader, a new name or key must not touch this hash."""
    dataset = open_dataset(hippocampus)
    found = check_dataset(dataset, tmp_path, progress=False).content_hash
    runs = runs_on("Hippocampus")
    assert len(runs) >= 56
    assert {run.info["data_hash"] for run in runs} == {found}
    for name in ("study_hippocampus", "study_seeds"):
        assert [list(fold.val) for fold in all_folds(dataset)] == load_folds(ROOT / "results" / name)


def test_the_content_hash_of_the_sheets_stays(tmp_path: Path) -> None:
    root = tmp_path / "sheets"
    write_phantoms(root, 180, seed=0, kind=SheetKind())
    found = check_dataset(open_dataset(root), tmp_path, progress=False).content_hash
    assert {run.info["data_hash"] for run in runs_on("Phantoms")} == {found}
