"""Pictures of TensorBoard's tabs, taken in a headless Chromium."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

from vnet.commands.tensorboard import PATH
from vnet.core.errors import InputError
from vnet.training.study import vnet_command, vnet_environment

# name of the picture, the tab's address, what must be on the page before it is taken, height in pixels
TABS = (
    ("scalars", "timeseries", "card-view canvas, card-view svg", 1250),
    ("images", "images&regexInput=pointrend", "tf-image-loader img", 1500),
    ("custom", "custom_scalars", "tf-line-chart, vz-line-chart2, tf-custom-scalar-multi-line-chart-card svg", 1300),
    ("mesh", "mesh&regexInput=pointrend", "tf-mesh-loader canvas", 1720),
    ("hparams", "hparams", "vaadin-grid, .session-group, mat-table, table", 700),
)
WIDTH = 1400
PATIENCE_MS = 60_000
SETTLE_MS = 10_000  # curves are drawn some time after their charts


def draw(runs: Path, output: Path) -> list[Path]:
    """Write tensorboard_TAB.png of each tab, and print how long the first page took.

    Args:
        runs: folder of runs, as RUN_ROOT/NAME.
        output: folder, which exists.

    Raises:
        InputError: no events below `runs`, or no Playwright or Chromium here.
    """
    if not any(runs.rglob("events.out.tfevents.*")):
        raise InputError(f"--tensorboard {runs}: no TensorBoard events below; name a folder of runs")
    paths = []
    with serve(runs) as address, browser() as chromium:
        print(f"first page: {first_page_seconds(chromium, address):.1f} s")
        profile = chromium.new_context()
        profile.new_page().goto(f"{address}/{PATH}")  # keeps in this profile that no point is cut off
        for name, tab, wanted, height in TABS:
            page = profile.new_page()
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.goto(f"{address}/?smoothing=0#{tab}&_smoothingWeight=0")
            page.wait_for_selector(wanted, timeout=PATIENCE_MS)
            page.wait_for_timeout(SETTLE_MS)
            path = output / f"tensorboard_{name}.png"
            page.screenshot(path=path, timeout=PATIENCE_MS)
            paths.append(path)
            page.close()
    return paths


def first_page_seconds(chromium: Any, address: str) -> float:
    """Seconds from opening the address to a chart with its curve, in a new browser profile."""
    context = chromium.new_context(viewport={"width": WIDTH, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(f"{address}/{PATH}")
    page.wait_for_selector(TABS[0][2], timeout=PATIENCE_MS)
    seconds = time.perf_counter() - start
    context.close()
    return seconds


@contextmanager
def serve(runs: Path) -> Iterator[str]:
    """The address of a TensorBoard of `runs` that has read its events, on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # the pages show the folder as it is named here: RUN_ROOT/NAME, not where that lies on this machine
    whole = runs.resolve()
    process = subprocess.Popen(
        vnet_command("tensorboard", f"{whole.parent.name}/{whole.name}", "--port", str(port)),
        cwd=whole.parent.parent,
        env=vnet_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}"
    try:
        wait_for_runs(f"{address}/data/runs")
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_for_runs(address: str, seconds: float = 60) -> None:
    """Wait until TensorBoard lists a run.

    Raises:
        InputError: it lists none in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if len(answer.read()) > len(b"[]\n"):
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise InputError(f"{address}: TensorBoard does not answer after {seconds:g} s; try it by hand")


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's if it has one, else Playwright's own.

    Raises:
        InputError: one of them is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise InputError("--tensorboard needs Playwright; pip install -e '.[screenshots]'") from None
    found = which("chromium") or which("chromium-browser") or which("google-chrome")
    with sync_playwright() as tools:
        try:
            # meshes need WebGL, which a machine without a graphics card has in software
            words = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
            chromium = tools.chromium.launch(executable_path=found, args=words)
        except Error:
            raise InputError("--tensorboard finds no Chromium; run: playwright install chromium") from None
        try:
            yield chromium
        except Error as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--tensorboard: Chromium did not show a page ({reason}); try it again") from None
        finally:
            chromium.close()
