"""Write the lists of keys in docs/configuration.md from the dataclasses of the config."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

REPOSITORY = Path(__file__).resolve().parents[1]
# the repository, not an installed copy, is what the page describes
sys.path.insert(0, str(REPOSITORY))

from vnet.commands.main import CommandParser, run_and_exit  # noqa: E402
from vnet.core.config import Config  # noqa: E402

PAGE = REPOSITORY / "docs" / "configuration.md"
MARK = "<!-- from here on written by scripts/write_docs.py -->\n"
KINDS = (
    (r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "`").replace(", ", " or ")),
    (r"tuple\[Axes, \.\.\.\]", "list of 3 int"),
    (r"tuple\[float, float, float\]", "3 float"),
    (r"\bAxes\b", "3 int"),
    (r"tuple\[(.*), \.\.\.\]", r"list of \1"),
    (r"dict\[str, Any\]", "keys and values"),
    (r"\bNone\b", "null"),
    (r"\bstr\b", "text"),
    (r"\bbool\b", "true or false"),
)


def configuration_page() -> str:
    """The text of docs/configuration.md: what stands before `MARK` stays, the lists of keys follow it."""
    sections = {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    parts = [PAGE.read_text().split(MARK)[0] + MARK, *_section("", Config, set(sections))]
    for name, kind in sections.items():
        parts += _section(name, kind, set())
    return "\n".join(parts)


def _section(name: str, schema: Any, nested: set[str]) -> list[str]:
    """The heading and table of one section; `name` is empty for the keys without a section."""
    from docstring_parser import parse_from_object

    told = parse_from_object(schema)
    about = " ".join(part for part in (told.short_description, told.long_description) if part)
    meaning = {param.arg_name: param.description or "" for param in told.params}
    lines = [f"## `{name}`" if name else "## Keys without a section", "", _one_line(about), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for item in fields(schema):
        if item.name not in nested:
            key = f"{name}.{item.name}" if name else item.name
            cells = (f"`{key}`", _kind(str(item.type)), f"`{_default(item)}`", _one_line(meaning[item.name]))
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _kind(annotation: str) -> str:
    """A type in plain words: `tuple[int, ...] | None` is `list of int, or null`."""
    for pattern, words in KINDS:
        annotation = re.sub(pattern, words, annotation)
    return annotation.replace(" | ", ", or ")


def _default(item: Field[Any]) -> str:
    """The default as it is written in YAML, on one line."""
    import yaml

    value = item.default_factory() if item.default_factory is not MISSING else item.default
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(argv: Sequence[str]) -> int:
    CommandParser(prog="write_docs.py", description=__doc__).parse_args(argv)
    PAGE.write_text(configuration_page())
    print(f"written: {PAGE.relative_to(REPOSITORY)}")
    return 0


if __name__ == "__main__":
    run_and_exit(main, sys.argv[1:])
