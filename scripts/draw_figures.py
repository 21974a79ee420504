"""Draw the pictures of README and docs.

points.png    sampled points over a mask at 32, 64 and 128 elements a side, as in 2020
surface.png   the uncertain voxels of a coarse 3D segmentation: a shell around the organ
speed.png     seconds of `getpoint` against its points, from results/benchmarks/getpoint.csv
phantom.png   with --run: outlines of truth, unrefined and refined labels of a case, in three planes
head.png      with --run: how the head works, step by step, on that case
tensorboard_TAB.png  with --tensorboard: each tab of TensorBoard, in a headless Chromium
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the packages of this checkout, and scripts/

from vnet.commands.main import CommandParser, run_and_exit  # noqa: E402


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="draw_figures.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=REPOSITORY / "docs" / "images")
    parser.add_argument("--run", metavar="RUN", type=Path, help="a run with a head, as of make experiment")
    parser.add_argument("--case", metavar="NAME", help="a case of its validation fold (default: the first)")
    parser.add_argument("--tensorboard", metavar="RUNS", type=Path, help="a folder of runs, as runs/quickstart")
    chosen = parser.parse_args(argv)
    from scripts.figures import points

    chosen.output.mkdir(parents=True, exist_ok=True)
    if chosen.tensorboard:
        from scripts.figures import tensorboard_tabs

        paths = tensorboard_tabs.draw(chosen.tensorboard, chosen.output)
    else:
        paths = points.draw_head(chosen.run, chosen.case, chosen.output) if chosen.run else points.draw(chosen.output)
    for path in paths:
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    run_and_exit(main, sys.argv[1:])
