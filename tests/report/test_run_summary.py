"""What a run says at its end, from made-up tables whose numbers are known."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from vnet.evaluation.study_tables import read_study
from vnet.report.output import print_run_summary
from vnet.report.run_summary import commands, next_looks, program, summary_table

HEADER = "arm,fold,seed,case,structure,refined,dice,surface_dice,hd95_mm,assd_mm"
ROWS = """
a,organ,false,.70,.6,4,2
a,organ,true,.80,.7,3,1
a,vessel,false,.20,.1,9,5
a,vessel,true,.10,.1,9,5
b,organ,false,.80,.7,3,1
b,organ,true,.90,.8,2,1
b,vessel,false,0,0,50,50
b,vessel,true,0,0,50,50
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "toy" / "pointrend_s2" / "fold0_seed0"
    folder.mkdir(parents=True)
    lines = [f"pointrend_s2,0,0,{line}" for line in ROWS.split()]
    (folder / "cases.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    (folder / "run.json").write_text(json.dumps({"dropped_steps": 3}))
    (folder / "metrics.csv").write_text("step,dice\n10,0.40\n20,0.45\n")
    columns = "case,structure,distance_upto_mm,margin_upto,fixed,broken,unchanged,wrong_before\n"
    (folder / "refinement.csv").write_text(f"{columns}a,organ,1,1,9,9,9,9\na,all structures,1,1,25,10,65,40\n")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "worst_b.png").write_bytes(b"")
    return folder


def test_dice_by_structure_with_and_without_refinement(run: Path) -> None:
    table = summary_table(read_study([run / "cases.csv"]))
    assert table.title == "pointrend_s2 fold 0 seed 0: mean over 2 cases"
    assert table.columns == ("structure", "Dice", "unrefined", "change", "surface Dice", "HD95 (mm)", "missed")
    assert table.rows == (
        ("mean", "0.4500", "0.4250", "+0.0250", "0.4000", "16.00", "1"),
        ("organ", "0.8500", "0.7500", "+0.1000", "0.7500", "2.50", "0"),
        ("vessel", "0.0500", "0.1000", "-0.0500", "0.0500", "29.50", "1"),
    )


def test_what_to_look_at_next(run: Path) -> None:
    assert next_looks(read_study([run / "cases.csv"])) == [
        "weakest structure: vessel, Dice 0.0500; missed in 1 of 2 cases",
        f"worst case: a, Dice 0.4500; look at {run / 'pictures' / 'worst_b.png'}",
        "refinement: Dice +0.0250, better in 1 and worse in 0 of 2 cases; of 100 voxels asked about 25% fixed, "
        "10% broken",
        "training: 3 steps not finite, dropped; a lower training.learning_rate may help",
        "training: Dice rose by 0.050 up to the last validation; more training.steps may help",
    ]


def test_a_curve_that_fell_names_its_best_step(run: Path) -> None:
    (run / "metrics.csv").write_text("step,dice\n10,0.50\n20,0.46\n30,0.45\n")
    assert next_looks(read_study([run / "cases.csv"]))[-1] == (
        "training: Dice was best at step 10 (0.500) and 0.450 at the end, step 30"
    )


def test_an_arm_without_a_head_has_no_word_on_refinement(run: Path) -> None:
    kept = [line for line in (run / "cases.csv").read_text().splitlines() if ",true," not in line]
    (run / "cases.csv").write_text("\n".join(kept) + "\n")
    study = read_study([run / "cases.csv"])
    assert summary_table(study).columns == ("structure", "Dice", "surface Dice", "HD95 (mm)", "missed")
    assert not [line for line in next_looks(study) if line.startswith("refinement")]


def test_commands_can_be_pasted(run: Path) -> None:
    assert len(commands(run)) == 2  # without events there is nothing for TensorBoard
    (run / "events.out.tfevents.1").write_bytes(b"")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    board, predict, compare = commands(run)
    assert board.endswith(f"--logdir {run.parent.parent}")
    assert predict.endswith(f"vnet predict {run} --input scan.nii.gz --output predicted")
    assert compare.endswith(f"vnet compare {run.parent.parent}")


def test_a_program_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tool = tmp_path / "my tools" / "python"
    tool.parent.mkdir()
    tool.symlink_to(sys.executable)
    assert program("python", str(tool)) == "'my tools/python'"
    assert program("python", "/elsewhere/python") == "/elsewhere/python"
    monkeypatch.setenv("PATH", str(tool.parent) + os.pathsep + os.environ["PATH"])
    assert program("python", str(tool)) == "python"


def test_a_run_without_validation_cases_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "cases.csv").write_text("")
    print_run_summary(run)
    assert "no validation case" in capsys.readouterr().out
