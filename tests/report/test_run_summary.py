"""What a run says at its end and how its curve ended, from made-up tables whose numbers are known."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vnet.core.errors import InputError
from vnet.evaluation.comparison import Difference
from vnet.evaluation.statistics import Paired
from vnet.evaluation.study_tables import Study, read_study
from vnet.report.curves import Ending, convergence_notes, convergence_table, endings, ends_of_last_quarter
from vnet.report.output import print_run_summary, write_report
from vnet.report.report import build_report
from vnet.report.run_summary import commands, next_looks, plain_words, program, summary_table
from vnet.report.tables import markdown

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
        "training: not converged, Dice rose by 0.025 over the last quarter of the steps; more training.steps may help",
    ]


def test_the_pictures_of_what_refinement_changed_are_named(run: Path) -> None:
    for rank, case in (("best", "a"), ("median", "c"), ("worst", "b")):
        (run / "pictures" / f"change_{rank}_{case}.png").write_bytes(b"")
    pictures = run / "pictures"
    assert next_looks(read_study([run / "cases.csv"]))[3] == (
        f"what refinement changed: look at {pictures / 'change_best_a.png'}, change_median_c.png, change_worst_b.png"
    )


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
    assert board.endswith(f"vnet tensorboard {run.parent.parent}")
    assert predict.endswith(f"vnet predict {run} --input scan.nii.gz --output predicted")
    assert compare.endswith(f"vnet compare {run.parent.parent}")


def difference(first: float, second: float, verdict: str, *, cases: int = 5, better: int = 4) -> Difference:
    summary = Paired(
        mean=first - second, low=-1, high=1, over_trainings=None, p=0.1, effect=0, better=better / cases,
        worse=(cases - better) / cases, cases=cases, subjects=cases, runs=1, runs_resampled=False,
        seed_spread=None,
    )  # fmt: skip
    return Difference(
        comparison="pointrend_s4 - dense", structure="mean", metric="dice", means=(first, second), summary=summary,
        p_holm=0.1, verdict=verdict, seed_spread=None, missed=0, without_missed=0, absent=0, invented=0,
    )  # fmt: skip


SEEN = (
    "In plain words: pointrend_s4 scored higher than dense on 5 cases (mean Dice 0.8000 against 0.7000; higher in 4, "
    "lower in 1)"
)


@pytest.mark.parametrize(
    ("verdict", "end"),
    [
        ("too few cases (5)", "these are too few cases to tell how other cases would come out."),
        ("no difference shown", "the cases differ too much to expect the same on others."),
        ("better", "expect the same on other cases, also of networks that are trained again."),
        (
            "better in this training",
            "expect the same of these trained networks on other cases; trained again they may come out otherwise.",
        ),
        (
            "better, but equivalent in these trainings",
            "expect the same of these trained networks on other cases; trained again they may come out otherwise, and "
            "the difference is too small to matter by this study's margin.",
        ),
        (
            "equivalent",
            "expect the same on other cases, also of networks that are trained again, and the difference is too small "
            "to matter by this study's margin.",
        ),
    ],
)
def test_every_verdict_in_plain_words(verdict: str, end: str) -> None:
    assert plain_words(difference(0.8, 0.7, verdict)) == f"{SEEN}; {end}"


def test_the_sign_of_a_difference_in_plain_words() -> None:
    worse = plain_words(difference(0.7, 0.8, "worse", cases=1, better=0))
    assert worse.startswith("In plain words: pointrend_s4 scored lower than dense on 1 case (mean Dice 0.7000 against")
    same = plain_words(difference(0.70001, 0.70002, "no difference shown"))
    assert same.startswith("In plain words: pointrend_s4 and dense scored the same on 5 cases (mean Dice 0.7000); the")
    assert plain_words(None) == ""


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


def test_the_last_quarter_begins_between_validations_on_a_straight_line() -> None:
    assert ends_of_last_quarter({250: 0.5, 500: 0.6, 750: 0.7, 1000: 0.75}) == (pytest.approx(0.7), 0.75)
    # 3/4 of 200 lies half way between 100 and 200
    assert ends_of_last_quarter({200: 0.8, 100: 0.6}) == (pytest.approx(0.7), 0.8)
    assert ends_of_last_quarter({160: 0.6, 200: 0.8}) is None
    assert ends_of_last_quarter({200: 0.8}) is None
    assert ends_of_last_quarter({}) is None


CURVES = {
    ("dense", 0): "30,0.700\n40,0.704\n",
    ("dense", 1): "30,0.700\n40,0.702\n",
    ("coarse_s2", 0): "30,0.7000\n40,0.7015\n",
    ("pointrend_s2", 0): "35,0.7\n40,0.9\n",
    ("coarse_s4", 0): "",
}


@pytest.fixture
def ended(tmp_path: Path, make_run: Callable[..., Path]) -> Study:
    for (arm, seed), rows in CURVES.items():
        folder = make_run(tmp_path / "s", arm, seed=seed)
        (folder / "metrics.csv").write_text("step,dice\n" + rows)
    return read_study([tmp_path / "s"])


def test_an_arm_has_not_converged_where_the_mean_over_its_runs_still_rises(ended: Study) -> None:
    assert endings(ended) == {
        "dense": Ending(2, pytest.approx(0.7), pytest.approx(0.703)),
        "coarse_s2": Ending(1, pytest.approx(0.7), pytest.approx(0.7015)),
        "pointrend_s2": None,
    }
    assert convergence_table(ended).rows == (
        ("dense", "not converged", "0.7000", "0.7030", "+0.0030", "2"),
        ("coarse_s2", "no longer rises", "0.7000", "0.7015", "+0.0015", "1"),
        ("pointrend_s2", "not known", "-", "-", "-", "0"),
    )


def test_the_report_says_not_converged_and_where_it_is_not_known(ended: Study, tmp_path: Path) -> None:
    risen, unknown = convergence_notes(ended)
    assert risen == (
        "Not converged: dense (+0.0030). Their Dice still rose by more than 0.002 over the last quarter of the steps,"
        " so longer training may change the differences."
    )
    assert unknown.startswith(
        "Not known to have converged: pointrend_s2. Their runs have no validation before the last"
    )
    report = build_report([tmp_path / "s"])
    page = write_report(report, tmp_path / "report").read_text()
    for text in (risen, unknown):
        assert text in report.notes()
        assert f'<p class="note">{text}</p>' in page
    assert "Convergence: validation Dice over the last quarter of the steps" in page
    assert markdown(convergence_table(ended)) in (tmp_path / "report" / "report.md").read_text()


def test_a_curve_without_steps_is_refused(ended: Study, tmp_path: Path) -> None:
    (tmp_path / "s" / "dense" / "fold0_seed0" / "metrics.csv").write_text("a,dice\n1,0.5\n")
    with pytest.raises(InputError, match="dense fold 0 seed 0: its validation curve cannot be read"):
        endings(read_study([tmp_path / "s"]))
