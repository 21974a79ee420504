"""A config from YAML and the command line: defaults < file < arm < command line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from vnet.core.config.keys import (
    ARMS,
    flatten,
    hash_defaults,
    known_keys,
    merge,
    refuse_unknown,
    schema_fields,
    unflatten,
)
from vnet.core.config.schema import Config
from vnet.core.environment import config_file
from vnet.core.errors import InputError

MOST_BYTES, MOST_VALUES = 2**20, 100_000  # of a config file


def read_config_file(path: Path) -> dict[str, Any]:
    """The nested keys of a config file, {} of an empty one.

    Raises:
        InputError: the file cannot be read, is no mapping, is too large, or holds a key that is not of the schema.
    """
    nested = _load(path)
    if not isinstance(nested, dict):
        raise InputError(f"{path}: must hold keys and values, got {type(nested).__name__}")
    known = known_keys(Config)
    for section in dict.fromkeys(key.split(".")[0] for key in known if "." in key):
        if not isinstance(nested.get(section, {}), dict):
            raise InputError(f"{path}: {section} must hold keys and values, got {nested[section]!r}")
    refuse_unknown(flatten({str(key): value for key, value in nested.items()}), known, str(path))
    return nested


def _load(path: Path) -> object:
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: larger than {MOST_BYTES >> 20} MiB, which no config is; name a config file")
        text = path.read_text(encoding="utf-8")
        if count_values(yaml.compose(text, Loader=yaml.SafeLoader)) > MOST_VALUES:
            raise InputError(
                f"{path}: unfolds to more than {MOST_VALUES} values, which no config holds; write it without aliases"
            )
        nested = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); name an existing config file") from None
    except InputError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    return {} if nested is None else nested


def count_values(node: yaml.Node | None, known: dict[int, float] | None = None) -> float:
    """Values below a YAML node when each alias is written out; infinite where a node holds itself.

    Counted on the composed nodes, because loading a file of nested aliases would fill the memory.
    """
    known = {} if known is None else known
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # while its parts are counted
        parts = [part for pair in node.value for part in _parts(pair)]
        known[id(node)] = 1 + sum(count_values(part, known) for part in parts)
    return known[id(node)]


def _parts(pair: yaml.Node | tuple[yaml.Node, yaml.Node]) -> Sequence[yaml.Node]:
    """Key and value of a mapping's entry, or the one element of a sequence."""
    return pair if isinstance(pair, tuple) else (pair,)


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


SET_BY_THE_STUDY = ("arm", "name", "seed", "data.fold", "data.groups", "run_root")  # keys that no arm may set


def load_config(argv: Sequence[str], *, check_arms: bool = True, apply_arm: bool = True, **kwargs: Any) -> Config:
    """The config of a command line: defaults < file < arm < command line.

    Args:
        argv: options as `--config FILE --arm NAME --data.fold 1`.
        check_arms: check the study's other arms as well; each takes a tenth of a second.
        apply_arm: False leaves out the keys of the arm: what the arms of a study have in common.
        kwargs: for the parser (`prog`, `description`).

    Raises:
        InputError: an unknown key, a wrong type, a value out of range, a file that cannot be read.
    """
    parser = config_parser(**kwargs)
    typed = parse_command_line(parser, argv)
    path = config_file(typed.config) if typed.config else None
    where = str(path or "command line")
    nested = read_config_file(path) if path else {}
    nested["name"] = nested.get("name") or (path.stem if path else "experiment")
    given = dict(option_values(argv))
    nested["arm"] = str(given.get("arm") or nested.get("arm") or "dense")
    arms = typed.study.arms if "study.arms" in given else (nested.get("study") or {}).get("arms")
    if check_arms and isinstance(arms, Mapping):
        for other in map(str, arms):
            if other != nested["arm"]:
                build_config(config_parser(), merge(nested, arm_overrides(other, arms, where)), where)
    if apply_arm:
        nested = merge(nested, arm_overrides(nested["arm"], arms, where))
    return build_config(parser, nested, where, argv)


def refuse_keys_of_arms(argv: Sequence[str], arms: Mapping[str, Any]) -> None:
    """Refuse keys on a study's command line that tell its arms apart: given to all, `dense` would get a head.

    Args:
        argv: of the study, whose keys win over those of every arm.
        arms: of the study: name to overrides.

    Raises:
        InputError: a key of the network or of the points that an arm sets.
    """
    for key in dict(option_values(argv)):
        if key.startswith(("network.", "points.")):
            named = [arm for arm in arms if key in flatten(arm_overrides(arm, arms, "command line"))]
            if named:
                raise InputError(
                    f"command line: {key} would be given to every arm, but {', '.join(named)} would be another network "
                    "with it; write it into the config file, which the arms' own keys follow"
                )


def load_resolved(nested: Mapping[str, Any], argv: Sequence[str] = (), *, where: str = "config.yaml") -> Config:
    """The config of a run, read back from its resolved keys, whose arm is applied already.

    Args:
        nested: the keys. One that is missing is newer than the run and gets its `hash_default`: what was done then.
        argv: `--key value` pairs in place of the run's own.
        where: names the file in an error.

    Raises:
        InputError: a key that is not of the schema, a wrong type, a value out of range.
    """
    refuse_unknown(flatten(nested), known_keys(Config), where)
    defaults = {key: value for key, value in hash_defaults(Config).items() if key != "study.arms"}
    study = nested.get("study")
    if isinstance(study, Mapping) and not study.get("equivalence_reason"):
        # runs made before a margin needed a reason hold one without; it says nothing about the run itself
        nested = merge(nested, {"study": {"equivalence_margin": None}})
    parser = config_parser()
    parse_command_line(parser, argv)
    return build_config(parser, merge(unflatten(defaults), nested), where, argv)


def arm_overrides(arm: str, study_arms: object, where: str) -> dict[str, Any]:
    """Nested keys that an arm sets: the built-in arm's, then those under `study.arms`.

    Raises:
        InputError: no such arm, or keys that an arm may not set.
    """
    own = study_arms if isinstance(study_arms, Mapping) else {}
    if arm not in ARMS and arm not in own:
        names = sorted(ARMS | dict(own))
        raise InputError(f"{where}: unknown arm {arm}; it is one of {', '.join(names)}, or a name under study.arms")
    overrides = own.get(arm) or {}
    if not isinstance(overrides, Mapping):
        raise InputError(f"{where}: study.arms.{arm} must hold keys and values, got {overrides!r}")
    refuse_unknown(flatten(overrides), known_keys(Config), f"{where}: study.arms.{arm}")
    for key in flatten(overrides):
        if key in SET_BY_THE_STUDY or key.startswith("study."):
            raise InputError(f"{where}: study.arms.{arm} cannot set {key}: the study itself sets it")
    return merge(ARMS.get(arm, {}), overrides)
