"""The README's own lines, run as they stand (with fewer steps)."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vnet.data.phantoms.organs import PhantomKind, write_phantoms

ROOT = Path(__file__).parents[2]
SHORT = {
    "--training.steps": "3",
    "--training.patch": "[16,16,32]",
    "--network.width": "2",
    "--points.num_points": "64",
    "--study.arms": "{dense: {}, pointrend_s2: {}}",
    "--study.comparisons": "[pointrend_s2 - dense]",
    "--threads": "1",
}


def block(heading: str) -> list[str]:
    """The lines of the first sh block below a heading."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"## {heading}\n.*?```sh\n(.*?)```", text, re.DOTALL)
    assert found, heading
    return found[1].strip().splitlines()


def in_process_of_its_own(words: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def command(line: str, data: Path) -> list[str]:
    words = shlex.split(line.replace("DATA", str(data)))
    if words[0] == "python":
        script = ROOT / words[1]
        words = [sys.executable, str(script), *words[2:]]
    return [str(ROOT / word) if word.startswith("configs/") else word for word in words]


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://localhost:{port}/", timeout=5) as page:
            return b"TensorBoard" in page.read()
    except (urllib.error.URLError, OSError):
        return False


def test_your_own_data_in_five_lines(tmp_path: Path) -> None:
    check, experiment, compare, predict, board = block("Your own data in five lines")
    data = tmp_path / "data"
    write_phantoms(data, 5, seed=1, kind=PhantomKind(size=(16, 20, 24), orientations=("RAS", "LPS")))
    in_process_of_its_own(command(check, data), tmp_path)
    short = [word for pair in SHORT.items() for word in pair]
    told = in_process_of_its_own([*command(experiment, data), *short], tmp_path)
    assert "pointrend_s2 - dense" in told
    assert "pointrend_s2 - dense" in in_process_of_its_own(command(compare, data), tmp_path)
    in_process_of_its_own(command(predict, data), tmp_path)
    assert len(list((tmp_path / "predicted").glob("*.nii.gz"))) == 5
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [str(Path(sys.executable).with_name("tensorboard")), *shlex.split(board)[1:], "--port", str(port)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        tries = 0
        while not answers(port) and tries < 60:
            tries += 1
            time.sleep(0.5)
        assert answers(port)
    finally:
        process.terminate()
        process.wait()


def python_block(heading: str) -> str:
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"## {heading}\n.*?```python\n(.*?)```", text, re.DOTALL)
    assert found, heading
    return found[1]


def test_the_head_on_a_unet_learns() -> None:
    """Labels are the sign of the image, which the network sees blurred and the head sees sharp."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(python_block("The head on your own network"), "README.md", "exec"), names)
    refined, labels = names["refined"], names["labels"]
    assert refined.labels.shape == labels.shape
    asked = [torch.zeros(labels[0].numel(), dtype=torch.bool).index_fill(0, i, True) for i in refined.index]
    mask = torch.stack(asked).reshape(labels.shape)
    assert (refined.labels == labels)[mask].float().mean() > 0.95
    assert (refined.unrefined == labels)[mask].float().mean() < 0.8


def test_the_two_commands_are_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in block("Two commands"):
        assert re.search(rf"^{line.split()[1]}:.*##", makefile, re.MULTILINE), line


@pytest.mark.parametrize("name", re.findall(r"`(\w+\.py)[ `]", (ROOT / "README.md").read_text()))
def test_every_script_named_is_there(name: str) -> None:
    assert (ROOT / "scripts" / name).is_file()


def test_pictures_named_are_there() -> None:
    for name in re.findall(r"\]\((docs/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / name).is_file(), name


def test_configs_named_are_there() -> None:
    for name in re.findall(r"configs/\w+\.yaml", (ROOT / "README.md").read_text()):
        assert yaml.safe_load((ROOT / name).read_text())
