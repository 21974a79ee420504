"""Write a trained run as a bundle: weights without the optimiser, config, metadata and a model card.

`vnet predict BUNDLE` labels with it, and so does `python -m monai.bundle run` (extra `bundle`), with the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence

from vnet.commands.main import CommandParser


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="vnet export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder: RUN_ROOT/NAME/ARM/foldF_seedS")
    parser.add_argument("bundle", metavar="BUNDLE", help="folder to write, new or empty")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last")
    parser.add_argument(
        "--half",
        action="store_true",
        help="weights in half precision: half the bytes; labels may change where two classes nearly tie",
    )
    chosen = parser.parse_args(argv)
    from vnet.report.bundle import write_bundle

    folder = write_bundle(chosen.run, chosen.bundle, checkpoint=chosen.checkpoint, half=chosen.half)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"wrote {folder} ({size / 1e6:.1f} MB); complete its model card: {folder / 'docs' / 'README.md'}")
    return 0
