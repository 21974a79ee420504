"""The pictures of the runs on the page: what refinement did, and the worst, median and best case."""

from __future__ import annotations

from html import escape
from pathlib import Path

from vnet.evaluation.study_tables import RunRecord, Study
from vnet.report.html import picture_html

MAX_PICTURES = 12  # of a section
MAX_PICTURE_BYTES = 400_000
GAINS = {"best": "largest gain of Dice", "median": "median gain of Dice", "worst": "smallest gain of Dice, or loss"}


def pictures_html(study: Study) -> dict[str, list[str]]:
    """Heading to the HTML of a section, from small PNG files in the `pictures` folders of the runs."""
    found = _pictures(study)
    changes = [(path, run) for path, run in found if path.name.startswith("change_")][:MAX_PICTURES]
    cases = [(path, run) for path, run in found if not path.name.startswith("change_")][:MAX_PICTURES]
    sources = _sources([path for path, _ in [*changes, *cases]])
    of_changes = [_change_html(path, run) for path, run in changes]
    of_cases = [_case_html(path, run) for path, run in cases]
    return {
        "What refinement did": [*of_changes, *sources] if of_changes else [],
        "Worst, median and best case": [*of_cases, *sources] if of_cases else [],
    }


def _pictures(study: Study) -> list[tuple[Path, RunRecord]]:
    """Small pictures with their runs; the first fold and the arms with a head come first."""
    order = [*study.heads, *(arm for arm in study.arms if arm not in study.heads)]
    runs = sorted(study.runs, key=lambda run: (run.fold, run.seed, order.index(run.arm)))
    folders = {run.pictures: run for run in runs}
    return [
        (picture, run)
        for folder, run in folders.items()
        for picture in sorted(folder.glob("*.png"), reverse=True)  # worst, median, best
        if picture.stat().st_size <= MAX_PICTURE_BYTES
    ]


def _case_html(path: Path, run: RunRecord) -> str:
    rank, _, case = path.stem.partition("_")
    seen = (
        f"Three planes of case {case}, the {rank} of {run.name}: the image with outlines of the truth and of the"
        " prediction"
    )
    return picture_html(path, seen, f"{rank} {case}, {run.name}")


def _change_html(path: Path, run: RunRecord) -> str:
    _, rank, case = path.stem.split("_", 2)
    seen = (
        f"One slice of case {case} of {run.name} twice, around the voxels that refinement changed: on the left the"
        " outline without refinement, on the right with it, both with that of the truth"
    )
    return picture_html(path, seen, f"{GAINS.get(rank, rank)}: {case}, {run.name}")


def _sources(pictures: list[Path]) -> list[str]:
    """Whose images these are, a paragraph a note."""
    notes = dict.fromkeys(path.with_name("SOURCE.md") for path in pictures)
    lines = dict.fromkeys(_one_line(note) for note in notes if note.is_file())
    return [f'<p class="note">{escape(line)}</p>' for line in lines]


def _one_line(note: Path) -> str:
    """A note of a few Markdown lines as running text."""
    lines = (line.lstrip("- ").strip() for line in note.read_text(encoding="utf-8").splitlines())
    return "; ".join(line.rstrip(".") for line in lines if line) + "."
