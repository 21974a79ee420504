"""Show the curves and pictures of runs in TensorBoard: no curve smoothed, no point cut off."""

from __future__ import annotations

import base64
import errno
import hashlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from vnet.commands.main import CommandParser
from vnet.core.errors import InputError

PORT = 6006  # TensorBoard's own choice
PORTS = 20  # tried, from there on
# TensorBoard smooths curves and leaves the lowest and highest 5 % of a chart's points outside: with few validations
# that is the best arm. Its address can switch off the first, only a setting in the browser the second.
CURVES = "?smoothing=0#timeseries&_smoothingWeight=0"
SCRIPT = f"""
const key = "_tb_global_settings";
let settings = {{}};
try {{ settings = JSON.parse(localStorage.getItem(key)) || {{}}; }} catch {{}}
localStorage.setItem(key, JSON.stringify({{...settings, scalarSmoothing: 0, ignoreOutliers: false}}));
localStorage.setItem("_ignoreYOutliers", "false");
location.replace("../../../{CURVES}");
"""
PAGE = f'<!doctype html><html lang="en"><title>TensorBoard</title><script>{SCRIPT}</script></html>'
PATH = "data/plugin/vnet/curves"


class CurvesPage(base_plugin.TBPlugin):
    """A page of TensorBoard without a tab: it sets what no address can, and goes on to the curves."""

    plugin_name = "vnet"

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        return {"/curves": self.serve}

    def is_active(self) -> bool:
        return False

    def serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Answer with the page (WSGI); its script runs because its hash is named."""
        known = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        page = http_util.Respond(wrappers.Request(environ), PAGE, "text/html", csp_scripts_sha256s=[known])
        return page(environ, start_response)


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="vnet tensorboard", description=__doc__, epilog="TensorBoard's own options may follow.")
    parser.add_argument("runs", metavar="RUNS", nargs="?", default="runs", help="a folder of runs (default: runs)")
    parser.add_argument("--host", default="localhost", help="who may look (default: localhost, this machine alone)")
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or the next that is free")
    chosen, words = parser.parse_known_args(list(argv))
    if not Path(chosen.runs).is_dir():
        raise InputError(f"{chosen.runs}: no such folder; name a folder of runs, as vnet experiment makes them")
    port = chosen.port or free_port()
    if is_taken(port):
        raise InputError(
            f"--port {port}: taken; if your TensorBoard runs there, open http://localhost:{port}/{PATH}, else leave "
            "--port out, and a free one is taken"
        )
    print(f"open http://{chosen.host}:{port}/{PATH}    (Ctrl-C ends TensorBoard)", flush=True)
    from tensorboard import default, main_lib, program

    main_lib.global_init()
    board = program.TensorBoard(plugins=[*default.get_plugins(), CurvesPage])
    try:
        board.configure(["", "--logdir", chosen.runs, "--host", chosen.host, "--port", str(port), *words])
        return int(board.main())
    except base_plugin.FlagsError as error:
        raise InputError(f"command line: {error}; see tensorboard --help") from None
    except KeyboardInterrupt:
        return 0


def free_port() -> int:
    """The first free port from `PORT` on; says so where that one is taken.

    Raises:
        InputError: none of `PORTS` is free.
    """
    found = next((port for port in range(PORT, PORT + PORTS) if not is_taken(port)), None)
    if found is None:
        raise InputError(f"--port: {PORT} to {PORT + PORTS - 1} are all taken; end a TensorBoard, or name another port")
    if found != PORT:
        print(f"port {PORT} is taken, perhaps by a TensorBoard that still runs; this one takes {found}")
    return found


def is_taken(port: int) -> bool:
    """Whether something answers at a port of this machine."""
    with socket.socket() as tried:
        return tried.connect_ex(("localhost", port)) != errno.ECONNREFUSED
