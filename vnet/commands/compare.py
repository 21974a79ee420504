"""Compare the finished runs below PATH: which arm is better, by how much, at what price.

Prints the tables and writes report.html, report.md and CSV files. Tables in a run's evaluation/ folder count only when
PATH lies in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vnet.commands.main import CommandParser


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="vnet compare", description=__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="folder of runs, or a cases.csv")
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, help="of the report (default: report/ in the first PATH)"
    )
    parser.add_argument(
        "--comparison",
        metavar="'A - B'",
        action="append",
        help="shown beside those that the study's config names beforehand; may be given more than once "
        "(default: the usual ones where the config names none)",
    )
    parser.add_argument(
        "--margin", metavar="DICE", type=float, help="Dice within which arms are equivalent (default: the study's)"
    )
    parser.add_argument("--margin-reason", metavar="TEXT", help="why the margin is that large; it is printed")
    parser.add_argument(
        "--predictions",
        nargs=2,
        metavar=("NAME", "FOLDER"),
        action="append",
        default=[],
        help="label files CASE.nii.gz of another program as an arm NAME, scored on the study's validation cases; a "
        "run.json in FOLDER may tell its seconds; may be given more than once",
    )
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path, help="data set with the true labels (default: the one the runs name)"
    )
    chosen = parser.parse_args(argv)
    from vnet.evaluation.predictions import Predictions
    from vnet.report.output import print_report, write_report
    from vnet.report.report import build_report, checked_margin

    margin = None if chosen.margin is None else checked_margin(chosen.margin, chosen.margin_reason)
    predictions = [Predictions(name, Path(folder)) for name, folder in chosen.predictions]
    report = build_report(
        chosen.paths, others=chosen.comparison, margin=margin, predictions=predictions, data=chosen.data
    )
    print_report(report)
    first = chosen.paths[0] if chosen.paths[0].is_dir() else chosen.paths[0].parent
    page = write_report(report, chosen.output or first / "report")
    print(f"report: {page}", flush=True)
    return 0
