"""Tests whose data or extra is missing are deselected, and the summary says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["tests.fixtures"]

# a change fails by what it changes, not by chance: the same examples are drawn every time, new ones under `random`
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("thorough", derandomize=True)  # tests/errors/test_fuzz.py tries more examples under it
settings.register_profile("random")
settings.load_profile("repeatable")
TASK = "Task04_Hippocampus"


def decathlon_there() -> bool:
    root = os.environ.get("DECATHLON_ROOT")
    if root and not Path(root, TASK, "dataset.json").is_file():
        raise pytest.UsageError(f"DECATHLON_ROOT={root}: no {TASK}/dataset.json there")
    return bool(root)


def detection_there() -> bool:
    """Whether torchvision imports: one for CUDA beside a torch for the CPU does not."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return find_spec("pycocotools") is not None


NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "decathlon": (decathlon_there, f"DECATHLON_ROOT is not set (a folder with {TASK})"),
    "nnunet": (lambda: find_spec("nnunetv2") is not None, "the nnunet extra is not installed"),
    "dicom": (
        lambda: all(map(find_spec, ("pydicom", "highdicom", "dcm2niix"))),
        "the dicom extra is not installed",
    ),
    "slicer": (lambda: find_spec("slicerio") is not None, "the slicer extra is not installed"),
    "bundle": (lambda: find_spec("ignite") is not None, "the bundle extra is not installed"),
    "detection": (detection_there, "the detection extra is not installed (or PYTHONPATH=tests/torchvision_cpu is due)"),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, (there, _) in NEEDS.items():
        # by its marker: `keywords` hold the names of folders too, that of the checkout among them
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not there():
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=marked)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # from the needs alone: with several workers, this process has collected nothing
    for marker, (there, reason) in NEEDS.items():
        if not there():
            terminalreporter.write_line(f"{marker} tests deselected: {reason}")


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    """The Decathlon data set that DECATHLON_ROOT names."""
    return Path(os.environ["DECATHLON_ROOT"], TASK)
