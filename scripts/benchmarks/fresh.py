"""Measurements in a process of their own, so that the peak memory is theirs alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def call(module: str, function: str, **words: Any) -> Mapping[str, Any]:
    """The mapping that `function(**words)` of `scripts.benchmarks.MODULE` returns in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is what it wrote on stderr.
    """
    code = (
        f"import json, sys; from scripts.benchmarks.{module} import {function}; "
        f"print(json.dumps({function}(**json.loads(sys.argv[1]))))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
