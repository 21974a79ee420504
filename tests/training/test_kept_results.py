"""Finished runs merged into the results of their study, and read back beside run folders."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pandas as pd
import pytest

from vnet.core import runs
from vnet.core.config import Config, StudyConfig, TrainingConfig, load_config, load_resolved
from vnet.core.environment import checkout
from vnet.core.errors import InputError
from vnet.core.files import read_table
from vnet.core.runs import Run, RunKey, kept_run, read_kept_runs, results_folder
from vnet.evaluation.study_tables import finished_tables, read_study
from vnet.training import kept_results
from vnet.training.kept_results import keep_run

HASH = "0123456789e5"  # a text that looks like a number


def study(folder: Path, *words: str) -> tuple[Config, Config]:
    """(config of a run, what the runs have in common)."""
    argv = ["--name", "s", "--run_root", str(folder / "runs"), "--study.results_root", str(folder / "kept"), *words]
    return load_config(argv), load_config(argv, apply_arm=False)


def write_run(config: Config, dice: float = 0.5, data_hash: str = HASH) -> Path:
    """The small files of a finished run: two cases, and a head's rows for an arm with a head."""
    folder = config.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    info = {
        "config_hash": config.hash(data_hash),
        "commit": "123456789012",
        "python": "3.11",
        "packages": {"torch": "2.13"},
        "data_hash": data_hash,
        "steps": 5,
        "seconds_per_step": 0.1 + 0.2,
        "peak_memory_prediction_mib": None,
        "device": "3090",
    }
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "splits.json").write_text('{"folds": [{"train": ["a"], "val": ["b", "c"]}]}')
    (folder / "metrics.csv").write_text(f"step,dice\n3,0.1\n5,{dice}\n")
    start = f"{config.arm},{config.data.fold},{config.seed}"
    head = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm\n"
    (folder / "cases.csv").write_text(head + "".join(f"{start},{c},organ,false,{dice},1,,1\n" for c in "bc"))
    head = "case,structure,distance_upto_mm,margin_upto,fixed,broken,unchanged,wrong_before\n"
    (folder / "refinement.csv").write_text(head + "b,organ,1.0,inf,3,1,2,4\n" if config.has_head else "")
    return folder


def test_the_rows_of_every_run_are_in_one_table(tmp_path: Path) -> None:
    for arm, fold, seed, dice in (("pointrend_s2", 1, 0, 0.7), ("dense", 1, 1, 0.6), ("dense", 0, 0, 0.5)):
        config, common = study(tmp_path, "--arm", arm, "--data.fold", str(fold), "--seed", str(seed))
        write_run(config, dice)
        assert keep_run(config, common) == f"kept in {tmp_path / 'kept/s'}"
    folder = tmp_path / "kept/s"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cases.csv", "config.yaml", "curves.csv", "refinement.csv", "runs.csv", "splits.json"
    ]  # fmt: skip
    columns = ("arm", "fold", "seed", "case", "dice", "hd95_mm")
    cases = [tuple(row[column] for column in columns) for row in read_table(folder / "cases.csv")]
    assert cases == [
        ("dense", "0", "0", "b", "0.5", ""), ("dense", "0", "0", "c", "0.5", ""),
        ("dense", "1", "1", "b", "0.6", ""), ("dense", "1", "1", "c", "0.6", ""),
        ("pointrend_s2", "1", "0", "b", "0.7", ""), ("pointrend_s2", "1", "0", "c", "0.7", ""),
    ]  # fmt: skip
    assert [(r["arm"], r["step"], r["dice"]) for r in read_table(folder / "curves.csv")] == [
        ("dense", "3", "0.1"), ("dense", "5", "0.5"), ("dense", "3", "0.1"), ("dense", "5", "0.6"),
        ("pointrend_s2", "3", "0.1"), ("pointrend_s2", "5", "0.7"),
    ]  # fmt: skip
    (refined,) = read_table(folder / "refinement.csv")
    assert refined == {
        "arm": "pointrend_s2", "fold": "1", "seed": "0", "case": "b", "structure": "organ", "distance_upto_mm": "1.0",
        "margin_upto": "inf", "fixed": "3", "broken": "1", "unchanged": "2", "wrong_before": "4",
    }  # fmt: skip


def test_a_row_of_a_run_holds_its_run_json_and_its_config(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "coarse_s4", "--training.steps", "5", "--data.root", "/home/x/Task01")
    info = json.loads((write_run(config) / "run.json").read_text())
    keep_run(config, common)
    run = kept_run(config)
    assert run is not None
    assert run.info == {key: value for key, value in info.items() if value is not None}  # numbers to the last digit
    assert load_resolved(run.config).hash(HASH) == config.hash(HASH) == run.config_hash
    text = "".join(path.read_text() for path in (tmp_path / "kept/s").iterdir())
    assert "DATA/Task01" in text
    assert "/home/x" not in text
    assert str(tmp_path) not in text
    row = next(iter(read_table(tmp_path / "kept/s/runs.csv")))
    assert json.loads(row["config"]) == {"network.output_stride": 4, "points.num_points": 0}


def test_run_folders_and_results_are_read_alike(tmp_path: Path) -> None:
    for arm in ("pointrend_s2", "dense"):
        config, common = study(tmp_path, "--arm", arm)
        write_run(config, 0.5 if arm == "dense" else 0.7)
        keep_run(config, common)
    ours, kept = read_study([tmp_path / "runs"]), read_study([tmp_path / "kept"])
    pd.testing.assert_frame_equal(ours.cases, kept.cases)
    for one, two in zip(ours.runs, kept.runs, strict=True):
        assert one.key == two.key
        assert {k: v for k, v in one.info.items() if v is not None} == two.info
        assert one.config["network"] == two.config["network"]
        assert one.config["study"]["comparisons"] == two.config["study"]["comparisons"]
        for name in ("refinement.csv", "curves.csv"):
            assert one.rows(name).to_dict("records") == two.rows(name).to_dict("records")
        assert one.root == tmp_path / "runs"
        assert two.root == tmp_path / "kept"
    assert len(read_study([tmp_path]).runs) == 2  # a copy counts once


def merge_some(folder: Path, arm: str, seeds: range) -> None:
    for seed in seeds:
        config, common = study(folder, "--arm", arm, "--seed", str(seed))
        write_run(config, seed / 10)
        keep_run(config, common)


def test_processes_that_end_together_keep_each_other_s_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    work = [context.Process(target=merge_some, args=(tmp_path, arm, range(6))) for arm in ("dense", "pointrend_s2")]
    for process in work:
        process.start()
    for process in work:
        process.join(120)
        assert process.exitcode == 0
    folder = tmp_path / "kept/s"
    expected = [RunKey(arm, "0", seed) for arm in ("dense", "pointrend_s2") for seed in range(6)]
    assert list(read_kept_runs(folder)) == expected
    assert [(r["arm"], int(r["seed"]), float(r["dice"])) for r in read_table(folder / "cases.csv")] == [
        (arm, seed, seed / 10) for arm in ("dense", "pointrend_s2") for seed in range(6) for _ in "bc"
    ]
    assert len(read_table(folder / "curves.csv")) == 2 * 12
    assert not (folder / ".lock").exists()


def test_rows_of_the_same_run_are_replaced(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    for dice in (0.5, 0.6):
        write_run(config, dice)
        keep_run(config, common)
    assert [row["dice"] for row in read_table(tmp_path / "kept/s/cases.csv")] == ["0.6", "0.6"]
    assert len(read_kept_runs(tmp_path / "kept/s")) == 1


def test_rows_of_another_config_stay(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config, 0.5)
    keep_run(config, common)
    before = {path: path.read_bytes() for path in (tmp_path / "kept/s").iterdir()}
    words = ["--arm", "dense", "--training.steps", "9", "--run_root", str(tmp_path / "b")]
    longer, longer_common = study(tmp_path, *words)
    write_run(longer, 0.9)
    said = keep_run(longer, longer_common)
    assert said == (
        f"{tmp_path}/kept/s: holds dense fold 0 seed 0 of another config, and stays as it is; name the study anew, or "
        "remove that folder and run it again"
    )
    other, _ = study(tmp_path, "--arm", "coarse_s2")
    write_run(other, data_hash="else")
    assert "holds runs on other data, and stays as it is" in keep_run(other, common)
    assert before == {path: path.read_bytes() for path in (tmp_path / "kept/s").iterdir()}


def test_old_rows_keep_their_config_where_the_study_s_changes(tmp_path: Path) -> None:
    """A key that all runs had in common until now differs from then on: it moves into the rows of the older runs."""
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    keep_run(config, common)
    wider, wider_common = study(tmp_path, "--arm", "coarse_s2", "--network.width", "8")
    write_run(wider)
    keep_run(wider, wider_common)
    runs = read_kept_runs(tmp_path / "kept/s")
    for one in (config, wider):
        assert load_resolved(runs[RunKey.of(one)].config).hash(HASH) == one.hash(HASH)


def test_a_row_without_its_run_is_no_result(tmp_path: Path) -> None:
    """As where a merge was cut short: runs.csv, written last, says which runs are finished."""
    for arm in ("dense", "coarse_s2"):
        config, common = study(tmp_path, "--arm", arm)
        write_run(config)
        keep_run(config, common)
    path = tmp_path / "kept/s/runs.csv"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("coarse")) + "\n")
    assert {run.arm for run in read_study([tmp_path / "kept"]).runs} == {"dense"}
    assert set(read_study([tmp_path / "kept"]).cases["arm"]) == {"dense"}


def test_a_run_counts_from_where_it_is_finished(tmp_path: Path) -> None:
    configs = []
    for arm in ("dense", "coarse_s2", "pointrend_s2"):
        config, common = study(tmp_path, "--arm", arm)
        configs.append(config)
        write_run(config, 0.5)
        keep_run(config, common)
        (config.run_folder / "cases.csv").unlink()
    write_run(configs[1], 0.6)  # finished here as well
    stale, _ = study(tmp_path, "--arm", "dense", "--training.steps", "9")
    write_run(stale, 0.9)  # of another config, where `dense` would lie
    found = finished_tables(configs)
    kept = tmp_path / "kept/s/cases.csv"
    assert found == {
        RunKey("dense", "0", 0): kept,
        RunKey("coarse_s2", "0", 0): configs[1].run_folder / "cases.csv",
        RunKey("pointrend_s2", "0", 0): kept,
    }
    read = read_study(list(dict.fromkeys(found.values())), found)
    assert read.cases.groupby("arm")["dice"].mean().to_dict() == {"dense": 0.5, "coarse_s2": 0.6, "pointrend_s2": 0.5}


def test_kept_tables_of_another_config_do_not_make_a_run_done(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    keep_run(config, common)
    elsewhere, _ = study(tmp_path, "--arm", "dense", "--run_root", str(tmp_path / "fresh"))
    assert Run(elsewhere.run_folder, elsewhere.hash(HASH)).state(elsewhere, HASH) == "kept"
    assert Run(elsewhere.run_folder, elsewhere.hash("else")).state(elsewhere, "else") == "new"
    longer, _ = study(tmp_path, "--arm", "dense", "--run_root", str(tmp_path / "fresh"), "--training.steps", "9")
    assert Run(longer.run_folder, longer.hash(HASH)).state(longer, HASH) == "new"


def test_results_lie_in_the_checkout_and_not_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config(name="s", run_root="there")
    assert results_folder(config) == Path(__file__).parents[2] / "results" / "s" == checkout() / "results" / "s"  # type: ignore[operator]
    monkeypatch.setattr(runs, "checkout", lambda: None)
    assert results_folder(config) == Path("there/results/s")
    chosen = Config(name="s", study=StudyConfig(results_root="mine"), training=TrainingConfig())
    assert results_folder(chosen) == Path("mine/s")


def test_results_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    keep_run(config, common)
    folder = tmp_path / "kept/s"
    whole = (folder / "runs.csv").read_text()
    (folder / "runs.csv").write_text(whole.replace("dense,0,0", "dense,0,zero"))
    with pytest.raises(InputError, match=r"runs.csv: is no table of runs .*zero.*; restore the file"):
        kept_run(config)
    (folder / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="runs.csv: is no table of runs"):
        kept_run(config)
    (folder / "runs.csv").write_text(whole)
    (folder / "config.yaml").write_text("- 1")
    with pytest.raises(InputError, match="config.yaml: must hold keys and values; restore the file"):
        kept_run(config)
    (folder / "config.yaml").unlink()
    with pytest.raises(InputError, match="config.yaml: cannot be read"):
        keep_run(config, common)


def test_results_beyond_what_is_committed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_results, "MOST_BYTES", 1500)
    config, common = study(tmp_path, "--arm", "dense")
    write_run(config)
    with pytest.raises(InputError, match="would be over 0 MiB; set study.keep: false"):
        keep_run(config, common)
    assert not (tmp_path / "kept/s/runs.csv").exists()


def test_a_run_from_a_changed_tree_is_known(tmp_path: Path) -> None:
    for arm, commit in (("dense", "abc+"), ("coarse_s2", "abc"), ("coarse_s4", "")):
        config, common = study(tmp_path, "--arm", arm)
        path = write_run(config) / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": commit}))
        keep_run(config, common)
    assert {run.arm: run.changed_tree for run in read_study([tmp_path / "kept"]).runs} == {
        "dense": True, "coarse_s2": False, "coarse_s4": False
    }  # fmt: skip
