"""docs/configuration.md is what the dataclasses say."""

from __future__ import annotations

from scripts.write_docs import PAGE, configuration_page
from vnet.core.config import Config
from vnet.core.config.keys import flatten


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == configuration_page(), "run: python scripts/write_docs.py"


def test_every_key_has_a_row_with_its_default_and_meaning() -> None:
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in configuration_page().splitlines() if line.startswith("| `")
    )
    keys = flatten(Config(name="x").to_dict())
    assert {f"`{key}`" for key in keys} == set(rows)
    for key, row in rows.items():
        kind, default, meaning = row.split(" | ")
        assert kind
        assert default.startswith("`"), key
        assert len(meaning) > 10, key
    assert rows["`points.oversample_ratio`"].startswith("float | `10.0` | k: ")
    assert rows["`data.fold`"].startswith("int, or `all` | `0` | ")
