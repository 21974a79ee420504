"""Write docs/refusals.md from the tests' own list: python -m tests.errors.table"""

from __future__ import annotations

from pathlib import Path

from tests.errors.refusals import GROUPS

PAGE = Path(__file__).parents[2] / "docs" / "refusals.md"
HEAD = """# What is refused, and how it is said

Every rule below is a test (`tests/faults`): the command ends with this line on stderr and exit code 2, without a
traceback, and no file that was there before is touched. `...` stands for what depends on the machine or is long.
Made by `python -m tests.errors.table`; do not edit by hand.
"""


def page() -> str:
    """The text of the page."""
    parts = [HEAD]
    for group, rules in GROUPS.items():
        parts += [f"## {group}\n", "| what is wrong | command | error: |", "|---|---|---|"]
        parts += [f"| {rule.what} | {code(rule.command)} | {code(rule.message)} |" for rule in rules]
        parts.append("")
    return "\n".join(parts)


def code(words: str) -> str:
    """Markdown code in a table's cell."""
    shown = words.replace("|", "\\|")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
