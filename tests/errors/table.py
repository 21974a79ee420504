"""Write docs/errors.md from the tests' own list: python -m tests.errors.table"""

from __future__ import annotations

from pathlib import Path

from tests.errors.refusals import GROUPS

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """# Errors

Each row is a test (`tests/errors`): the command prints this line on stderr, without a traceback, ends with exit code 2
(or the one in brackets) and leaves every file as it was. `...` stands for text that depends on the machine or is long.
`python -m tests.errors.table` writes this page.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for group, rules in GROUPS.items():
        parts += [f"## {group}\n", "| what is wrong | command | error: |", "|---|---|---|"]
        exits = {rule.what: f" (exit {rule.code})" if rule.code != 2 else "" for rule in rules}
        parts += [f"| {rule.what} | {code(rule.command)} | {code(rule.message)}{exits[rule.what]} |" for rule in rules]
        parts.append("")
    return "\n".join(parts)


def code(words: str) -> str:
    """Markdown code in a table's cell."""
    shown = words.replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
