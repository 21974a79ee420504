"""Label volumes with a trained run or model: NIfTI or a DICOM series in; labels out, on the image's own grid."""

from __future__ import annotations

from collections.abc import Sequence

from vnet.commands.main import CommandParser, add_device_option
from vnet.core.environment import model_folder
from vnet.core.errors import InputError


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="vnet predict",
        description=__doc__,
        epilog="Keys of the config may follow, as --points.refine false, --inference.mirror [x], --threads 1.",
    )
    parser.add_argument("--model", metavar="NAME", help="in place of RUN: a model that comes with vnet (hippocampus)")
    if not any(word.partition("=")[0] == "--model" for word in argv):  # else values of overrides would pass for RUN
        parser.add_argument(
            "run",
            nargs="+",
            metavar="RUN",
            help="run folder, RUN_ROOT/NAME/ARM/foldF_seedS, or a bundle of `vnet export`; of several the mean counts",
        )
    parser.add_argument(
        "--input",
        required=True,
        help="a NIfTI file or a folder of them; the folder of a DICOM series, or a folder of such",
    )
    parser.add_argument("--output", required=True, help="folder of the label files; they keep the images' names")
    parser.add_argument(
        "--save",
        nargs="+",
        choices=["labels", "uncertainty", "probabilities", "seg_nrrd", "dicom_seg"],
        default=["labels"],
        help="what to write: labels (the default); uncertainty, one byte a voxel, 1 where two classes tie; "
        "probabilities, a 4-D volume of all classes x voxels, the one output whose size grows with the classes; "
        "seg_nrrd, a segmentation of 3D Slicer; dicom_seg, a DICOM segmentation of the series",
    )
    parser.add_argument("--preview", action="store_true", help="also a picture a case: three planes with outlines")
    parser.add_argument("--checkpoint", choices=["last", "best"], default="last")
    add_device_option(parser)
    chosen, overrides = parser.parse_with_overrides(argv)
    if chosen.model is not None and overrides and not overrides[0].startswith("--"):
        raise InputError(f"command line: {overrides[0]}: --model stands in place of RUN; leave one of the two out")
    runs = chosen.run if chosen.model is None else [model_folder(chosen.model)]
    from vnet.core.progress import announce_compiling
    from vnet.inference.label_files import predict_files

    announce_compiling()
    written = predict_files(
        runs,
        chosen.input,
        chosen.output,
        checkpoint=chosen.checkpoint,
        overrides=overrides,
        device=chosen.device,
        save=tuple(dict.fromkeys([*chosen.save, *["preview"] * chosen.preview])),
    )
    print(f"wrote {len(written)} file{'s' * (len(written) != 1)} to {chosen.output}")
    return 0
