"""What the docs name exists: links, anchors, scripts, configs, make targets, keys; the page of keys is current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scripts.benchmark import BENCHMARKS
from scripts.write_docs import MARK, PAGE, configuration_page
from tests.docs.pages import LOG, PAGES, ROOT, anchors, links, one_line
from vnet.commands.main import COMMANDS
from vnet.core.config import Config
from vnet.core.config.keys import flatten

EVERY = pytest.mark.parametrize("page", [*PAGES, LOG], ids=lambda page: page.name)


@EVERY
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text()):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path.read_text()), target


@EVERY
def test_files_named_are_there(page: Path) -> None:
    text = page.read_text()
    folders = "scripts|configs|tests|vnet|pointrend|results|docs"
    for name in re.findall(rf"\b((?:{folders})/[\w/]+\.(?:py|yaml|md|csv))\b", text):
        assert (ROOT / name).is_file() or "mine" in name, name  # mine: what a reader makes
    for name in re.findall(r"\b(\w+\.py) [a-z]", text):
        assert (ROOT / "scripts" / name).is_file(), name


@EVERY
def test_configs_named_on_a_command_line_are_there(page: Path) -> None:
    if page.name == "errors.md":
        pytest.skip("names configs that are not there on purpose")
    for name in re.findall(r"--config (\w+)(?![\w./])", page.read_text()):
        assert name in ("FILE", "study_mine") or (ROOT / "configs" / f"{name}.yaml").is_file(), name


@EVERY
def test_make_targets_named_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


@EVERY
def test_commands_and_benchmarks_named_are_there(page: Path) -> None:
    if page.name == "errors.md":
        pytest.skip("names commands that are not there on purpose")
    text = page.read_text()
    for name in re.findall(r"(?:^|`)vnet ([a-z]+)\b", text, re.MULTILINE):
        assert name in COMMANDS, name
    for name in re.findall(r"benchmark\.py ([a-z]\w*)", one_line(text)):
        assert name in BENCHMARKS, name


@EVERY
def test_keys_named_are_of_the_schema(page: Path) -> None:
    if page.name in ("CHANGELOG.md", "errors.md"):
        pytest.skip("names old and wrong keys on purpose")
    known = set(re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE))
    sections = "data|network|points|training|inference|study|metrics"
    for key in re.findall(rf"(?:`|--)((?:{sections})\.\w+)(?=[` :])", page.read_text()):
        assert key in known, key


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_says_purpose_command_cost_and_result(config: Path) -> None:
    head = re.match(r"(?:#.*\n)+", config.read_text())
    assert head
    assert re.search(r"^# Run:    (vnet|python scripts/\w+\.py) ", head[0], re.MULTILINE)
    for word in ("# Cost:   ", "# Result: "):
        assert word in head[0], word
    assert yaml.safe_load(config.read_text())
    (command,) = re.findall(r"--config (?:configs/)?(\w+)", head[0])[:1]
    assert command == config.stem


def test_the_page_of_keys_is_current() -> None:
    assert PAGE.read_text() == configuration_page(), "run: python scripts/write_docs.py"


def test_every_key_has_a_row_with_its_default_and_meaning() -> None:
    lines = [line for line in configuration_page().split(MARK)[1].splitlines() if line.startswith("| `")]
    rows = dict(line.strip("| ").split(" | ", 1) for line in lines)
    keys = flatten(Config(name="x").to_dict())
    assert {f"`{key}`" for key in keys} == set(rows)
    for key, row in rows.items():
        kind, default, meaning = row.split(" | ")
        assert kind
        assert default.startswith("`"), key
        assert len(meaning) > 10, key
    assert rows["`points.oversample_ratio`"].startswith("float | `10.0` | k: ")
    assert rows["`data.fold`"].startswith("int, or `all` | `0` | ")
