"""After a training: its Dice with and without refinement, what to look at next, and the commands to go on with."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from vnet.core.runs import RUNS
from vnet.evaluation.comparison import MEAN, Difference, sides_of
from vnet.evaluation.refinement import ALL, COUNTS
from vnet.evaluation.statistics import NO_DIFFERENCE, THESE, THIS
from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.curves import RISE, ends_of_last_quarter, read_curve
from vnet.report.subgroups import read_refinement
from vnet.report.tables import Table, change, score, side_name

MISSED = 0.0
FALL = 0.005  # of Dice below its best that is worth a line


def summary_table(study: Study) -> Table:
    """Dice by structure of one run, with and without refinement, and how far surfaces lie apart."""
    head = bool(study.heads)
    rows = []
    for structure in (MEAN, *study.structures):
        answer, before = (_scores(study, structure, refined) for refined in (head, False))
        dice, unrefined = (part["dice"].mean() for part in (answer, before))
        versions = (score("dice", unrefined), change("dice", dice - unrefined)) if head else ()
        rest = (score(metric, answer[metric].mean()) for metric in ("surface_dice", "hd95_mm"))
        missed = int((rows_of(study, structure, head)["dice"] == MISSED).sum())
        rows.append((structure, score("dice", dice), *versions, *rest, str(missed)))
    columns = ("structure", "Dice", *(("unrefined", "change") if head else ()), "surface Dice", "HD95 (mm)", "missed")
    cases, name = study.cases["case"].nunique(), study.runs[0].name
    return Table(f"{name}: mean over {cases} cases", columns, tuple(rows), first_number=1)


def next_looks(study: Study) -> list[str]:
    """What deserves a look, a line each: the weakest structure and case, what refinement did, how training ended."""
    run = study.runs[0]
    answer = study.cases[study.cases["refined"] == bool(study.heads)]
    changes = _changes(run.pictures) if study.heads else []
    return [*_weakest(answer), *_worst_case(answer, run.pictures), *_refinement(study), *changes, *_training(run)]


def plain_words(difference: Difference | None) -> str:
    """A sentence on a difference of mean Dice in plain words: what was seen, and how far it holds; empty for None."""
    if difference is None or difference.summary is None or difference.means is None:
        return ""
    summary, verdict = difference.summary, difference.verdict
    first, second = map(side_name, sides_of(difference.comparison))
    mean, other = (score("dice", part) for part in difference.means)
    better, worse = (round(share * summary.cases) for share in (summary.better, summary.worse))
    count = f"{summary.cases} case{'s' * (summary.cases != 1)}"
    if mean == other:
        seen = f"{first} and {second} scored the same on {count} (mean Dice {mean})"
    elif _whatever_trainings(verdict) == "equivalent":
        seen = (
            f"{first} and {second} scored alike on {count} (mean Dice {mean} and {other}; higher in {better}, lower in "
            f"{worse})"
        )
    else:
        side = "higher" if difference.means[0] > difference.means[1] else "lower"
        seen = (
            f"{first} scored {side} than {second} on {count} (mean Dice {mean} against {other}; higher in {better}, "
            f"lower in {worse})"
        )
    return f"In plain words: {seen}; {_how_far(verdict)}."


def _how_far(verdict: str) -> str:
    """What may be expected of other cases and of networks trained again."""
    said = _whatever_trainings(verdict)
    if said not in ("better", "worse", "equivalent", "better, but equivalent", "worse, but equivalent"):
        if verdict == NO_DIFFERENCE:
            return "the cases differ too much to expect the same on others"
        return "these are too few cases to tell how other cases would come out"
    same = "no difference that matters by this study's margin" if said == "equivalent" else "the same"
    size = ", and the difference is too small to matter by this study's margin" if "but equivalent" in said else ""
    if verdict == said:
        return f"expect {same} on other cases, also of networks that are trained again{size}"
    return f"expect {same} of these trained networks on other cases; trained again they may come out otherwise{size}"


def _whatever_trainings(verdict: str) -> str:
    """The verdict without the words that limit it to these trainings."""
    return verdict.removesuffix(THESE).removesuffix(THIS)


def commands(run: Path) -> list[str]:
    """Commands that can be pasted as they stand: TensorBoard, prediction, comparison.

    Args:
        run: RUN_ROOT/NAME/ARM/foldF_seedS, or the kept results of a study.
    """
    runs = run if (run / RUNS).is_file() else run.parent.parent
    vnet = installed_program("vnet", "vnet")
    predict = f"{vnet} predict {shlex.quote(str(run))} --input scan.nii.gz --output predicted"
    return [
        *([f"curves, pictures:  {vnet} tensorboard {shlex.quote(str(runs))}"] if _has_events(runs) else []),
        f"predict:           {predict}"
        if (run / "checkpoints" / "last.ckpt").is_file()
        else f"predict:           no checkpoint in {run}: it holds the tables of a run made elsewhere",
        f"compare with more: {vnet} compare {shlex.quote(str(runs))}",
    ]


def installed_program(name: str, module: str) -> str:
    """The program that stands beside this Python, or `python -m MODULE` where there is none."""
    own = Path(sys.executable).with_name(name)
    return program(name, str(own)) if own.exists() else f"{program('python', sys.executable)} -m {module}"


def program(name: str, path: str) -> str:
    """`name` where the shell finds the program at `path` under it, else its path, relative if below this folder."""
    found = shutil.which(name)
    if found and Path(found).absolute() == Path(path).absolute():
        return name
    near = os.path.relpath(path)
    return shlex.quote(path if near.startswith("..") else near)


def rows_of(study: Study, structure: str, refined: bool) -> pd.DataFrame:
    """The rows of a structure, or of all where it is `MEAN`."""
    rows = study.cases[study.cases["refined"] == refined]
    return rows if structure == MEAN else rows[rows["structure"] == structure]


def _scores(study: Study, structure: str, refined: bool) -> pd.DataFrame:
    """Scores of a structure, or the means over each case's structures."""
    rows = rows_of(study, structure, refined)
    return rows.groupby("case")[["dice", "surface_dice", "hd95_mm"]].mean() if structure == MEAN else rows


def _weakest(answer: pd.DataFrame) -> Iterable[str]:
    means = answer.groupby("structure")["dice"].mean().dropna()
    if len(means) < 2:
        return
    name = str(means.idxmin())
    mine = answer.loc[answer["structure"] == name, "dice"].dropna()
    missed = int((mine == MISSED).sum())
    missing = f"; missed in {missed} of {len(mine)} cases" if missed else ""
    yield f"weakest structure: {name}, Dice {score('dice', float(means.min()))}{missing}"


def _worst_case(answer: pd.DataFrame, pictures: Path) -> Iterable[str]:
    means = answer.groupby("case")["dice"].mean().dropna()
    if means.empty:
        return
    picture = next(pictures.glob("worst_*.png"), None)
    shown = f"; look at {picture}" if picture else ""
    yield f"worst case: {means.idxmin()}, Dice {score('dice', float(means.min()))}{shown}"


def _refinement(study: Study) -> Iterable[str]:
    if not study.heads:
        return
    dice = study.cases.groupby(["refined", "case"])["dice"].mean()
    gains = (dice[True] - dice[False]).round(9)  # a tie is not a gain of the last bit
    counts = read_refinement(study)
    of_all = counts[counts["structure"] == ALL]
    fixed, broken, unchanged = (int(of_all[kind].sum()) for kind in COUNTS[:3])
    asked = fixed + broken + unchanged
    shares = f"{fixed / asked:.0%} fixed, {broken / asked:.0%} broken" if asked else ""
    yield (
        f"refinement: Dice {change('dice', float(gains.mean()))}, better in {int((gains > 0).sum())} and worse in "
        f"{int((gains < 0).sum())} of {len(gains)} cases"
        + (f"; of {asked:,} voxels asked about {shares}" if asked else "")
    )


def _changes(pictures: Path) -> Iterable[str]:
    """Where the pictures of the largest, the median and the smallest gain lie; the folder is written once."""
    ranks = ("best", "median", "worst")
    found = [path for rank in ranks for path in sorted(pictures.glob(f"change_{rank}_*.png"))]
    if found:
        yield f"what refinement changed: look at {', '.join([str(found[0]), *(path.name for path in found[1:])])}"


def _training(run: RunRecord) -> Iterable[str]:
    """How the curve of validations ended, as far as the run tells."""
    info = run.info
    if info.get("dropped_steps"):
        yield f"training: {info['dropped_steps']} steps not finite, dropped; a lower training.learning_rate may help"
    curve = read_curve(run)
    ends = ends_of_last_quarter(curve)
    if ends is None:
        return
    before, end = ends
    best_step, best = max(curve.items(), key=lambda point: point[1])
    if end - before > RISE:
        rise = f"Dice rose by {end - before:.3f} over the last quarter of the steps"
        yield f"training: not converged, {rise}; more training.steps may help"
    elif best - end > FALL:
        yield f"training: Dice was best at step {best_step} ({best:.3f}) and {end:.3f} at the end, step {max(curve)}"


def _has_events(runs: Path) -> bool:
    return any(runs.rglob("events.out.tfevents.*"))
