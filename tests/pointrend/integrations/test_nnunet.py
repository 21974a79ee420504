"""Labels equal those of nnU-Net's own export, for every resampling that nnU-Net plans."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.nnunet,
    # acvl_utils and batchgenerators, on import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]

ISOTROPIC, THICK = (1.0, 0.9, 0.8), (5.0, 0.7, 0.8)


def case(spacing, planned, source, target, *, kind="default", regions=False, labels=4, **keywords):
    """Everything nnU-Net hands to its export, reduced to what it reads; the file's axes are (x, z, y)."""
    from nnunetv2.preprocessing.resampling import default_resampling, resample_torch

    functions = {
        "default": (default_resampling.resample_data_or_seg_to_shape, {"is_seg": False, "order": 1, "order_z": 0}),
        "torch": (resample_torch.resample_torch_fornnunet, {"is_seg": False}),
    }
    function, options = functions[kind]
    forward, backward = [1, 2, 0], [2, 0, 1]
    seen = {}
    for axis, value in zip(forward, spacing, strict=True):
        seen[axis] = value
    plans = SimpleNamespace(transpose_forward=forward, transpose_backward=backward)
    configuration = SimpleNamespace(
        spacing=planned,
        resampling_fn_probabilities=partial(function, **(options | {"force_separate_z": None} | keywords)),
    )
    box = [[2, 2 + target[0]], [0, target[1]], [1, 1 + target[2]]]
    properties = {
        "spacing": [seen[axis] for axis in range(3)],
        "shape_after_cropping_and_before_resampling": target,
        "shape_before_cropping": tuple(n + 4 for n in target),
        "bbox_used_for_cropping": box,
    }
    manager = label_manager(labels, regions)
    logits = np.random.default_rng(0).normal(size=(labels, *source)).astype(np.float32)
    return logits, plans, configuration, manager, properties


def label_manager(labels: int, regions: bool):
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    names = {"background": 0} | {f"organ {i}": i for i in range(1, labels)}
    if not regions:
        return LabelManager(names, None)
    return LabelManager({"background": 0, "whole": (1, 2), "core": (2,)}, [1, 2])


def both(logits, *rest):
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    from pointrend.integrations.nnunet import labels_on_native_grid

    expected = convert_predicted_logits_to_segmentation_with_correct_shape(logits.copy(), *rest, num_threads_torch=1)
    return labels_on_native_grid(logits, *rest, threads=1), expected


CASES = {
    "same grid": (ISOTROPIC, ISOTROPIC, (6, 7, 8), (6, 7, 8)),
    "finer": ((0.5, 0.45, 0.4), ISOTROPIC, (6, 7, 8), (13, 15, 17)),
    "coarser": ((2.0, 1.9, 1.7), ISOTROPIC, (9, 10, 11), (5, 5, 6)),
    "thick slices, same number": (THICK, (5.0, 1.2, 1.2), (5, 8, 9), (5, 14, 13)),
    "thick slices, other number": (THICK, (3.0, 0.6, 0.6), (9, 8, 9), (5, 14, 13)),
    "thick along the last axis": ((0.7, 0.8, 5.0), (1.0, 1.0, 6.0), (7, 8, 5), (11, 10, 7)),
    "thick along the middle axis": ((0.7, 5.0, 0.8), (1.0, 6.0, 1.0), (7, 5, 8), (11, 7, 10)),
    "planned in 2D": (THICK, (1.2, 1.2), (5, 8, 9), (5, 14, 13)),
}


@pytest.mark.parametrize("kind", ["default", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_labels_equal_nnunets(kind, name):
    labels, expected = both(*case(*CASES[name], kind=kind))
    assert labels.dtype == expected.dtype
    assert labels.shape == expected.shape
    np.testing.assert_array_equal(labels, expected)


def test_a_tensor_and_other_settings_of_the_slices():
    logits, *rest = case(*CASES["thick slices, other number"])
    labels, expected = both(torch.from_numpy(logits).clone().numpy(), *rest)
    from pointrend.integrations.nnunet import labels_on_native_grid

    np.testing.assert_array_equal(labels_on_native_grid(torch.from_numpy(logits), *rest), expected)
    np.testing.assert_array_equal(labels, expected)
    for keywords in ({"order_z": 1}, {"force_separate_z": False}, {"separate_z_anisotropy_threshold": 100}):
        np.testing.assert_array_equal(*both(*case(*CASES["thick slices, other number"], **keywords)))


def test_many_labels_are_sixteen_bit():
    labels, expected = both(*case(*CASES["finer"], labels=300))
    assert labels.dtype == expected.dtype == np.uint16
    np.testing.assert_array_equal(labels, expected)


def refusal(message: str):
    # one line: the whole message has no line break
    return pytest.raises(ValueError, match=rf"\A[^\n]*{message}[^\n]*\Z")


def test_what_cannot_be_rendered_is_refused_in_one_line():
    from pointrend.integrations.nnunet import labels_on_native_grid

    with refusal(r"the model predicts regions \(whole, core\), which overlap and have no single best class"):
        labels_on_native_grid(*case(*CASES["finer"], regions=True))
    with refusal("must be linear in plane, got resample_data_or_seg_to_shape with order=3"):
        labels_on_native_grid(*case(*CASES["finer"], order=3))
    logits, plans, configuration, manager, properties = case(*CASES["finer"])
    configuration.resampling_fn_probabilities = np.resize
    with refusal("must be one of nnU-Net's linear ones, got resize"):
        labels_on_native_grid(logits, plans, configuration, manager, properties)
