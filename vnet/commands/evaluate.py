"""Score a trained run: its validation fold, or with --data.root every labelled case of another data set."""

from __future__ import annotations

from collections.abc import Sequence

from vnet.commands.main import CommandParser, add_device_option


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="vnet evaluate",
        description=__doc__,
        epilog="Keys of the config may follow, as --data.root OTHER; what differs from the run's own validation goes "
        "to RUN/evaluation/NAME.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder: RUN_ROOT/NAME/ARM/foldF_seedS")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last")
    add_device_option(parser)
    chosen, overrides = parser.parse_with_overrides(argv)
    from vnet.core.distributed import is_rank_zero
    from vnet.core.progress import announce_compiling
    from vnet.report.output import print_run_summary
    from vnet.training.run import evaluate_run

    announce_compiling()
    folder = evaluate_run(chosen.run, overrides, checkpoint=chosen.checkpoint, device=chosen.device)
    if is_rank_zero():
        print_run_summary(folder)
    return 0
