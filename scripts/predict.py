"""Label volumes with a trained run: NIfTI in, NIfTI out, on the image's own grid."""

from __future__ import annotations

from collections.abc import Sequence

from vnet.cli import Options, finish


def main(argv: Sequence[str]) -> int:
    options = Options(
        prog="predict.py",
        description=__doc__,
        epilog="Keys of the config may follow, as --points.refine false, --points.test_share 0.02, --threads 1.",
    )
    options.add_argument("run", metavar="RUN", help="run folder: RUN_ROOT/NAME/ARM/foldF_seedS")
    options.add_argument("--input", required=True, help="a NIfTI file, or a folder of them")
    options.add_argument("--output", required=True, help="folder of the label files; they keep the images' names")
    options.add_argument("--checkpoint", choices=["last", "best"], default="last")
    options.add_argument("--device", default="cpu", help="cpu, or cuda (default: cpu)")
    chosen, overrides = options.parse_with_overrides(argv)
    from vnet.prediction import predict_files

    written = predict_files(
        chosen.run, chosen.input, chosen.output, checkpoint=chosen.checkpoint, overrides=overrides, device=chosen.device
    )
    print(f"wrote {len(written)} label file{'s' * (len(written) != 1)} to {chosen.output}")
    return 0


if __name__ == "__main__":
    finish(main)
