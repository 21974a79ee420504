"""Each rule that refuses: its line, its exit code, no traceback, nothing overwritten; the table of them is current."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.errors.refusals import GROUPS, Refusal
from tests.errors.table import PAGE, page
from tests.errors.world import run_vnet, tree

RULES = [pytest.param(rule, id=rule.what.replace(" ", "_")) for rules in GROUPS.values() for rule in rules]
# what a command may leave though it refuses: the check of its data, kept to save time; labels of sound images
LEFT = ("runs/cache/", "out/")


def pattern(message: str) -> str:
    return ".*".join(re.escape(part) for part in message.split("..."))


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_refuses_in_one_line(rule: Refusal, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule.plant()
    before = tree(world)
    _, command, *words = shlex.split(rule.command)
    code, out, err = run_vnet(command, words, capsys)
    lines = err.splitlines()
    assert re.fullmatch("error: " + pattern(rule.message), lines[0]), err
    assert len(lines) == 1, err
    assert code == rule.code
    assert "Traceback" not in out + err
    after = tree(world)
    assert {name: after.get(name) for name in before} == before
    assert [name for name in after.keys() - before.keys() if not name.startswith(LEFT)] == []


def test_the_table_in_the_docs_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.errors.table"


def test_every_rule_is_listed_once() -> None:
    whats = [rule.what for rules in GROUPS.values() for rule in rules]
    assert len(whats) == len(set(whats)) >= 60
