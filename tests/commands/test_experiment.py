"""`vnet experiment --list` and `--only K/N`: every run in one share, none twice."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.errors.world import run_vnet
from vnet.core.config import load_config
from vnet.training.study import share_of


def listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    code, out, err = run_vnet("experiment", [*words, "--list"], capsys)
    assert (code, err) == (0, "")
    return out.splitlines()


def test_each_run_is_listed_as_a_command_that_makes_it(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed([*tiny, "--study.folds", "[0,2]", "--study.seeds", "[0,1,2]"], capsys)
    runs = set()
    for line in lines:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("vnet", "train")
        config = load_config(words)
        runs.add((config.arm, config.data.fold, config.seed))
    assert len(lines) == 12
    assert runs == {(arm, fold, seed) for arm in ("dense", "pointrend_s2") for fold in (0, 2) for seed in (0, 1, 2)}
    assert not Path("runs").exists()


def test_shares_hold_every_run_once(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*tiny, "--study.folds", "[0,1,2,3,4]"]
    whole = listed(words, capsys)
    shares = [listed([*words, "--only", f"{k}/3"], capsys) for k in (1, 2, 3)]
    assert [len(share) for share in shares] == [4, 3, 3]
    assert sorted(line for share in shares for line in share) == sorted(whole)
    assert share_of("ab", 3, 3) == []


@pytest.mark.parametrize("share", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_share_is_refused(share: str, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_vnet("experiment", [*tiny, f"--only={share}"], capsys)
    assert (code, err) == (2, f"error: --only must be K/N, the K-th of N shares, K from 1 to N; got {share}\n")


@pytest.mark.slow
def test_a_comparison_finds_the_runs_of_all_shares(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for share in ("1/2", "2/2"):
        code, out, err = run_vnet("experiment", [*tiny, "--only", share], capfd)
        assert (code, err) == (0, "")
        assert f"share {share} is done (1 runs); after the others: vnet experiment " in out
    code, out, err = run_vnet("compare", ["runs/tiny"], capfd)
    assert (code, err) == (0, "")
    assert "pointrend_s2 - dense" in out
