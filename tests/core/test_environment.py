"""Configs by name, a noted command without folders of the machine, devices by name, and the memory of the process."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest
import torch

from vnet.core import environment
from vnet.core.config import load_config
from vnet.core.distributed import launch_fabric
from vnet.core.environment import checkout, config_file, portable_command
from vnet.core.errors import InputError
from vnet.core.hardware import autocast, describe_device, find_device, memory_limit_bytes

ROOT = Path(__file__).parents[2]


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkout() == ROOT
    assert config_file("quickstart") == ROOT / "configs" / "quickstart.yaml"
    config = load_config(["--config", "quickstart"])
    assert (config.name, config.training.steps) == ("quickstart", 200)


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("training: {steps: 7}\n")
    assert load_config(["--config", "quickstart"]).training.steps == 7


def test_a_name_that_is_no_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()  # a folder of that name is none either
    assert config_file("quickstart") == ROOT / "configs" / "quickstart.yaml"
    for name in ("quickstar", "configs/quickstart", "../quickstart"):
        with pytest.raises(InputError, match="cannot be read .No such file"):
            load_config(["--config", name])


def test_results_that_a_study_wrote_do_not_mark_the_code_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *own, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    for name in ("vnet/core/environment.py", "results/study/runs.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("first\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "vnet/core/environment.py"))
    head = git("rev-parse", "--short=12", "HEAD").strip()
    assert environment.commit() == head
    (tmp_path / "results/study/runs.csv").write_text("second\n")
    assert environment.commit() == head
    (tmp_path / "vnet/core/environment.py").write_text("second\n")
    assert environment.commit() == head + "+"


def test_a_noted_command_holds_no_folder_of_the_machine():
    words = "train --config /home/me/mine.yaml --data.root /scan/Task09_Spleen --run_root=/scratch/x --data.cache /c"
    assert portable_command([*words.split(), "--arm", "dense", "--training.steps=5"]) == (
        "vnet train --config mine.yaml --data.root DATA/Task09_Spleen --arm dense --training.steps=5"
    )
    assert portable_command(["train", "--config", "configs/a.yaml"]) == "vnet train --config configs/a.yaml"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """As many GPUs as the parameter says, by torch's word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize("gpus", [0], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_without_a_gpu() -> None:
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(InputError, match=rf"--device {name}: torch can use no GPU here; take --device auto or cpu"):
            find_device(name)
    with pytest.raises(InputError, match="no GPU here"):
        launch_fabric(device="cuda")


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
def test_with_two_gpus() -> None:
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"--device cuda:2: the GPUs here are cuda:0 to cuda:1; name one of them"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--device must be auto, cpu, cuda or cuda:N, got {name}"):
        find_device(name)
    with pytest.raises(InputError, match=f"device must be auto, cpu, cuda or cuda:N, got {name}"):
        load_config(["--device", name])


def test_the_device_is_not_part_of_a_run() -> None:
    assert load_config(["--device", "cpu"]).hash("d") == load_config([]).hash("d")


def test_the_cpu_is_described_with_its_threads() -> None:
    assert describe_device(torch.device("cpu")).startswith("cpu (")


def test_the_arithmetic_of_inference_is_that_of_training_unless_it_is_named() -> None:
    words = ["--training.precision", "bf16-mixed"]
    assert load_config(words).inference.precision == "bf16-mixed"
    exact = load_config([*words, "--inference.precision", "32-true"])
    assert exact.inference.precision == "32-true"
    assert exact.hash("d") != load_config(words).hash("d")
    # as before the key existed, when prediction was always exact
    assert load_config(["--inference.precision", "32-true"]).hash("d") == load_config([]).hash("d")


def test_autocast_changes_the_arithmetic_of_a_product() -> None:
    x, cpu = torch.ones(2, 2), torch.device("cpu")
    kinds = []
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        with autocast(cpu, precision):
            kinds.append((x @ x).dtype)
    assert kinds == [torch.float32, torch.bfloat16, torch.float16]


def test_a_run_is_opened_on_any_device(tmp_path: Path) -> None:
    from vnet.core.runs import Run, open_run

    config = load_config(["--device", "cuda:7"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    Run(tmp_path, "0123").write_info()
    assert open_run(tmp_path)[1].device == "auto"
    assert open_run(tmp_path, ["--device", "cpu"])[1].device == "cpu"


def test_the_memory_limit_is_that_of_the_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    machine = memory_limit_bytes()
    assert machine > 2**28
    low = 2**44 if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_AS, (low, hard))
    try:
        assert memory_limit_bytes() == min(machine, low)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
