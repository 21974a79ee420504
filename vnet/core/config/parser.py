"""The config's keys as command-line options, with every error of the parser as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from vnet.core.config.keys import flatten, known_keys, refuse_unknown, schema_fields
from vnet.core.config.schema import Config
from vnet.core.errors import InputError

OWN_OPTIONS = ("config", "help", "print_shtab")  # of the parser, beside the keys


def config_parser(**kwargs: Any) -> ArgumentParser:
    """A parser with one option a key of `Config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of the keys below, or the name of a config that comes with vnet (quickstart).",
    )
    parser.add_class_arguments(Config)
    return parser


def option_values(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, value) of each `--key value` or `--key=value`."""
    for i, word in enumerate(argv):
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            yield key, value or (argv[i + 1] if i + 1 < len(argv) else "")


def parse_command_line(parser: ArgumentParser, argv: Sequence[str]) -> Any:
    """The parsed options of a command line.

    Raises:
        InputError: an unknown key, or a value of another type.
    """
    refuse_unknown([key for key, _ in option_values(argv)], [*known_keys(Config), *OWN_OPTIONS], "command line")
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InputError(f"command line: {one_line(error)}") from None


def build_config(parser: ArgumentParser, nested: Mapping[str, Any], where: str, argv: Sequence[str] = ()) -> Config:
    """The checked config of nested keys, with the command line's keys in place of theirs.

    Args:
        where: names the file in an error.

    Raises:
        InputError: a value of another type or out of range.
    """
    try:
        from_file = parser.parse_object(dict(nested))
        parsed = parser.parse_args(list(argv), namespace=from_file) if argv else from_file
        if faults := null_faults(parsed.as_dict()):
            raise InputError(faults)
        parts = parser.instantiate(parsed)
        return Config(**{item.name: parts[item.name] for item in fields(Config)})
    except InputError as error:
        raise InputError([f"{where}: {fault}" for fault in error.faults]) from None
    except ArgumentError as error:
        raise InputError(f"{where}: {one_line(error)}") from None


def null_faults(nested: Mapping[str, Any]) -> list[str]:
    """A line for each key that is null and must not be; jsonargparse accepts null for every type."""
    flat = flatten(nested)
    return [
        f"{key} must have a value, got null; leave the key out for its default"
        for key, _, kind in schema_fields(Config)
        if flat.get(key) is None and type(None) not in get_args(kind)
    ]


def one_line(error: Exception) -> str:
    """Key, rule and value of jsonargparse's message of several lines."""
    text = str(error)
    key = re.search(r'key "([^"]+)"|argument --([\w.]+)', text)
    wanted = dict.fromkeys(re.findall(r"(?:Expected a|Subtypes:) (.+?)\.?(?: Got value.*)?$", text, re.MULTILINE))
    got = re.search(r"(?:Got value|Given value): (.*)", text)
    if not (key and wanted and got):
        lines = [line.strip(" -") for line in text.splitlines()]
        return "; ".join(line for line in lines if line and not line.startswith("usage"))
    rule = " or ".join(re.sub(r"<class '(\w+)'>|typing\.", r"\1", item) for item in wanted if "[<" not in item)
    return f"{key[1] or key[2]} must be {rule}, got {got[1]}"
