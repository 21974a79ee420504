"""Mask R-CNN with and without PointRend: train the runs of a study, predict, compare.

    python scripts/instances.py train --config configs/nuclei.yaml --data FILE.npz [--arm NAME] [--seed N]
    python scripts/instances.py predict RUN --input FILE.npz --output FOLDER
    python scripts/instances.py compare results/nuclei

Each command has its own --help. A run that is done is passed over; one that was stopped continues.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the packages of this checkout, and scripts/

from vnet.commands.main import CommandParser, run_and_exit  # noqa: E402
from vnet.core.errors import InputError, Preempted  # noqa: E402

COMMANDS = ("train", "predict", "compare")


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        if argv and argv[0] in ("-h", "--help"):
            print(f"usage: instances.py {{{','.join(COMMANDS)}}} ...\n\n{__doc__}")
            return 0
        found = argv[0] if argv else "nothing"
        raise InputError(f"command line: the command must be one of {', '.join(COMMANDS)}, got {found}; see --help")
    return {"train": train, "predict": predict, "compare": compare}[argv[0]](argv[1:])


def require_detection() -> None:
    """Refuse to go on where the detection extra cannot be imported, and say what helps."""
    try:
        import pycocotools  # noqa: F401
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # a torchvision for CUDA beside a torch for the CPU: RuntimeError
        raise InputError(
            f"the detection extra cannot be imported ({error}); pip install '.[detection]', or where torchvision's own "
            "operators do not load, set PYTHONPATH=tests/torchvision_cpu"
        ) from None


def train(argv: Sequence[str]) -> int:
    from scripts.nuclei.config import load_config

    config = load_config(argv)
    require_detection()
    from scripts.nuclei.training import train_study

    try:
        train_study(config, REPOSITORY / "results" / config.name)
    except Preempted as stop:
        print("stopped; the same command continues where it stopped", flush=True)
        return stop.exit_code
    return 0


def predict(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="instances.py predict", description="Instance maps of images with a trained run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder: RUN_ROOT/NAME/ARM/seedS")
    parser.add_argument("--input", metavar="FILE", type=Path, required=True, help="an .npz file of names and images")
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="of the maps and scores")
    parser.add_argument(
        "--boxes", metavar="CSV", type=Path, help="of given boxes: image,x1,y1,x2,y2 in pixels; none are then detected"
    )
    parser.add_argument("--score", type=float, default=0.5, help="lowest score of a detection (0.5)")
    chosen = parser.parse_args(argv)
    require_detection()
    from scripts.nuclei.detector import predict_file

    count = predict_file(chosen.run, chosen.input, chosen.output, boxes=chosen.boxes, score=chosen.score)
    print(f"wrote the instances of {count} image{'s' * (count != 1)} to {chosen.output}")
    return 0


def compare(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="instances.py compare", description="The tables of a study, with intervals.")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder of the study's tables: results/NAME")
    chosen = parser.parse_args(argv)
    from scripts.nuclei.comparison import report

    print(report(chosen.results))
    return 0


if __name__ == "__main__":
    run_and_exit(main, sys.argv[1:])
