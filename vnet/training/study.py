"""A study: every arm, fold and seed that a config names, each a run of its own."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from vnet.core.config import Config, load_config, refuse_keys_of_arms
from vnet.core.distributed import rank_info
from vnet.core.environment import checkout
from vnet.core.errors import InputError
from vnet.core.progress import duration
from vnet.core.runs import is_finished
from vnet.data.dataset import require_dataset
from vnet.training.kept_results import keep_run

T = TypeVar("T")
SKIPPED_S = 15.0  # a run that ends sooner was done before


def study_configs(argv: Sequence[str], **kwargs: Any) -> Iterator[tuple[Config, list[str]]]:
    """Each run of a study, seed by seed and fold by fold, with the command line that makes it.

    A study that is stopped early so holds whole seeds: every arm on every fold.

    Raises:
        InputError: a bad key in any arm, or one that would change what the arms are, before the first run.
    """
    study = load_config(argv, **kwargs).study
    refuse_keys_of_arms(argv, study.arms)
    for seed, fold, arm in itertools.product(study.seeds, study.folds, study.arms):
        words = [*argv, "--arm", arm, "--data.fold", str(fold), "--seed", str(seed)]
        yield load_config(words, check_arms=False), words


def share_of(runs: Sequence[T], number: int, count: int) -> list[T]:
    """The `number`-th of `count` shares (from 1) of a study's runs: every `count`-th run."""
    return list(runs[number - 1 :: count])


def run_study(argv: Sequence[str], share: tuple[int, int] = (1, 1), **kwargs: Any) -> list[Config]:
    """Make every run of the study, or of a share of it, that is not done, and keep its tables if the study asks for it.

    Each run is a process of its own, so that its peak memory is its own.

    Args:
        share: number and count of `share_of`.

    Returns:
        The configs of these runs.

    Raises:
        InputError: no data set there, started as several processes, or a run ended with a fault; its own line is on
            stderr.
    """
    require_alone()
    runs = share_of(list(study_configs(argv, **kwargs)), *share)
    for config in {config.data.root: config for config, _ in runs}.values():
        require_dataset(config)
    common = load_config(argv, check_arms=False, apply_arm=False)
    start, trained = time.monotonic(), 0
    for number, (config, words) in enumerate(runs, 1):
        left = time_left(start, trained, len(runs) - number + 1)
        print(f"[{number}/{len(runs)}] {config.name} {config.arm} {config.run_name}{left}", flush=True)
        begin = time.monotonic()
        exit_code = run_forwarding_signals(vnet_command("train", *words), vnet_environment())
        if exit_code:
            raise StudyStopped(config, exit_code)
        trained += time.monotonic() - begin > SKIPPED_S
        if config.study.keep and is_finished(config):
            print(keep_run(config, common), flush=True)
    return [config for config, _ in runs]


def time_left(start: float, trained: int, runs: int) -> str:
    """`, about 3.2 min left`, from the runs that were trained since `start`; empty before the first.

    Args:
        runs: to come.
    """
    return f", about {duration((time.monotonic() - start) / trained * runs)} left" if trained else ""


def require_alone() -> None:
    """Raises `InputError` under torchrun or srun: each run of a study is started from here, once."""
    if (world := rank_info().world_size) > 1:
        raise InputError(
            f"vnet experiment: started as {world} processes, but it starts the runs itself, one after the other; train "
            "each arm with torchrun -m vnet train, then start vnet experiment once, which skips what is done"
        )


def vnet_command(*words: str) -> list[str]:
    """The words of `vnet ...` for this Python."""
    # -P: the working folder is not searched for modules, as with the command `vnet` itself
    return [sys.executable, "-P", "-m", "vnet", *words]


def vnet_environment() -> dict[str, str]:
    """The environment in which `vnet_command` finds this package.

    An installed package is found anyway. The folder of a checkout is added; a folder of installed packages must not be,
    since it would come before the standard library.
    """
    root = checkout()
    path = os.environ.get("PYTHONPATH")
    if root is None:
        return dict(os.environ)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *([path] if path else [])])}


def run_forwarding_signals(words: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run a command to its end, passing signals on, so that a run writes its checkpoint and the study ends after it.

    The command has a process group of its own: Ctrl-C reaches it once, through here, and not a second time from the
    terminal.
    """
    process = subprocess.Popen(words, env=env, process_group=0)

    def forward(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StudyStopped(InputError):
    """A run of a study ended early; its own line is on stderr already, `exit_code` is the run's."""

    def __init__(self, config: Config, exit_code: int) -> None:
        super().__init__(f"{config.run_folder}: ended with exit code {exit_code}; the same command goes on from there")
        self.exit_code = exit_code if exit_code > 0 else 128 - exit_code
