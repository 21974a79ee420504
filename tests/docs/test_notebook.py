"""docs/tour.ipynb, run cell by cell as it stands."""

from __future__ import annotations

import json
import resource
import shlex
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from tests.docs.pages import ROOT, run_vnet

NOTEBOOK = ROOT / "docs" / "tour.ipynb"
MOST_CPU_SECONDS = 240  # two minutes of two cores; the clock itself would fail on a machine that does other work


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_goes_from_data_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names: dict[str, Any] = {}
    start = cpu_seconds()
    for source in code_cells():
        if source.startswith("!vnet "):
            run_vnet(shlex.split(source.removeprefix("!vnet ")), tmp_path)
        else:
            exec(compile(source, NOTEBOOK.name, "exec"), names)
    plt.close("all")
    assert cpu_seconds() - start < MOST_CPU_SECONDS
    assert names["refined"].shape == names["truth"].shape
    assert names["fixed"].sum() > names["broken"].sum()
    assert (names["table"]["refined"] > names["table"]["unrefined"]).all()
    assert (tmp_path / "runs/tour/picture.png").stat().st_size > 10_000


def test_the_notebook_names_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert "/home/" not in text
    assert str(ROOT) not in text
    assert "/root/" not in text
