"""A config from YAML and the command line: defaults < file < arm < command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from vnet.core.config import schema as _schema
from vnet.core.config.arms import ARMS
from vnet.core.config.keys import flatten, merge, unflatten
from vnet.core.config.schema import ADDED_KEYS, Config
from vnet.core.errors import InputError

FILE_BYTES, FILE_VALUES = 2**20, 100_000  # of a config file


def known_keys(schema: type = Config, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(schema):
        nested = vars(_schema).get(str(item.type))
        if isinstance(nested, type) and is_dataclass(nested):
            keys += known_keys(nested, f"{prefix}{item.name}.")
        else:
            keys.append(f"{prefix}{item.name}")
    return keys


def refuse_unknown(keys: Mapping[str, Any] | Sequence[str], where: str) -> None:
    """Every key of `keys` (dotted) that is not of the schema, each with the nearest that is."""
    known = known_keys()
    faults = []
    for key in keys:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help for the keys"
            faults.append(f"{where}: unknown key {key}; {hint}")
    if faults:
        raise InputError(faults)


def nulls(values: Mapping[str, Any], schema: type = Config, prefix: str = "") -> list[str]:
    """A fault for each key that is null and may not be: the parser takes null for every type."""
    faults = []
    for item in fields(schema):
        key, kind = f"{prefix}{item.name}", str(item.type)
        value, nested = values.get(item.name), vars(_schema).get(kind)
        if value is None and "None" not in kind:
            faults.append(f"{key} must have a value, got null; leave the key out for its default")
        elif isinstance(value, Mapping) and isinstance(nested, type) and is_dataclass(nested):
            faults += nulls(value, nested, f"{key}.")
    return faults


def arm_overrides(arm: str, study_arms: object, where: str) -> dict[str, Any]:
    """Keys that `arm` sets: the built-in arm's, then those of `study.arms`."""
    own = study_arms if isinstance(study_arms, Mapping) else {}
    if arm not in ARMS and arm not in own:
        names = sorted(ARMS | dict(own))
        raise InputError(f"{where}: unknown arm {arm}; it is one of {', '.join(names)}, or a name under study.arms")
    overrides = own.get(arm) or {}
    if not isinstance(overrides, Mapping):
        raise InputError(f"{where}: study.arms.{arm} must hold keys and values, got {overrides!r}")
    refuse_unknown(flatten(overrides), f"{where}: study.arms.{arm}")
    for key in flatten(overrides):
        if key in ("arm", "name", "seed", "data.fold", "run_root") or key.startswith("study."):
            raise InputError(f"{where}: study.arms.{arm} cannot set {key}: the study itself sets it")
    return merge(ARMS.get(arm, {}), overrides)


def read_file(path: Path) -> dict[str, Any]:
    """The nested keys of a YAML config file, refused where they are not of the schema."""
    try:
        small = not path.is_file() or path.stat().st_size <= FILE_BYTES
        text = path.read_text(encoding="utf-8") if small else ""
        values = unfolded(yaml.compose(text, Loader=yaml.SafeLoader))
        nested = yaml.safe_load(text) if values <= FILE_VALUES else {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); name an existing config file") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not small:
        raise InputError(f"{path}: larger than {FILE_BYTES >> 20} MiB, which no config is; name a config file")
    if values > FILE_VALUES:
        raise InputError(
            f"{path}: unfolds to more than {FILE_VALUES} values, which no config holds; write it without aliases"
        )
    nested = {} if nested is None else nested
    if not isinstance(nested, dict):
        raise InputError(f"{path}: must hold keys and values, got {type(nested).__name__}")
    for section in (item.name for item in fields(Config) if item.name not in known_keys()):
        if not isinstance(nested.get(section, {}), dict):
            raise InputError(f"{path}: {section} must hold keys and values, got {nested[section]!r}")
    refuse_unknown(flatten({str(key): value for key, value in nested.items()}), str(path))
    return nested


def unfolded(node: yaml.Node | None, known: dict[int, float] | None = None) -> float:
    """Values below a YAML node when each alias is written out; infinite where one holds itself."""
    known = {} if known is None else known
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # while its parts are counted
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(unfolded(part, known) for part in parts)
    return known[id(node)]


def config_parser(**kwargs: Any) -> ArgumentParser:
    """The dataclasses as command-line options, one per key."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the keys below.")
    parser.add_class_arguments(Config)
    return parser


def load_config(
    argv: Sequence[str], *, base: Mapping[str, Any] | None = None, check_arms: bool = True, **kwargs: Any
) -> Config:
    """The config of a command line: defaults < file < arm < command line.

    Args:
        argv: options as `--config FILE --arm NAME --data.fold 1`.
        base: nested keys in place of a file (a run's resolved config, whose arm is already applied; `ADDED_KEYS` that
            it does not know mean what was done then).
        check_arms: check the study's other arms as well; each takes a tenth of a second.
        kwargs: for the parser (`prog`, `description`).

    Raises:
        InputError: an unknown key, a wrong type, a value out of range, a file that cannot be read.
    """
    parser = config_parser(**kwargs)
    typed = parse(parser, argv)
    path = Path(typed.config) if typed.config else None
    nested = merge(unflatten(ADDED_KEYS), base) if base is not None else read_file(path) if path else {}
    where = str(path or "command line")
    given = dict(option_values(argv))
    if path and not nested.get("name"):
        nested["name"] = path.stem
    nested.setdefault("name", "experiment")
    if base is None:
        arm = str(given.get("arm") or nested.get("arm") or "dense")
        arms = typed.study.arms if "study.arms" in given else (nested.get("study") or {}).get("arms")
        for name in arms if check_arms and isinstance(arms, Mapping) else {}:
            if name != arm:
                build(config_parser(), merge(nested, arm_overrides(str(name), arms, where)), where, [])
        nested = merge(nested, arm_overrides(arm, arms, where))
        nested["arm"] = arm
    return build(parser, nested, where, argv)


def option_values(argv: Sequence[str]) -> list[tuple[str, str]]:
    """(key, value) of each `--key value` or `--key=value`."""
    pairs = []
    for i, word in enumerate(argv):
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            pairs.append((key, value or (argv[i + 1] if i + 1 < len(argv) else "")))
    return pairs


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Any:
    known = {*known_keys(), "config", "help", "print_shtab"}
    refuse_unknown([key for key, _ in option_values(argv) if key not in known], "command line")
    try:
        return parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InputError(f"command line: {one_line(error)}") from None


def build(parser: ArgumentParser, nested: Mapping[str, Any], where: str, argv: Sequence[str]) -> Config:
    """The checked config of nested keys, with the command line on top."""
    try:
        from_file = parser.parse_object(dict(nested))
        args = list(argv)
        parsed = parser.parse_args(args, namespace=from_file) if args else from_file
        if faults := nulls(parsed.as_dict()):
            raise InputError(faults)
        parts = parser.instantiate(parsed)
        return Config(**{item.name: parts[item.name] for item in fields(Config)})
    except InputError as error:
        raise InputError([f"{where}: {fault}" for fault in error.faults]) from None
    except ArgumentError as error:
        raise InputError(f"{where}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """The heart of jsonargparse's multi-line message: key, what was expected, what came."""
    text = str(error)
    key = re.search(r'key "([^"]+)"|argument --([\w.]+)', text)
    wanted = dict.fromkeys(re.findall(r"(?:Expected a|Subtypes:) (.+?)\.?(?: Got value.*)?$", text, re.MULTILINE))
    got = re.search(r"(?:Got value|Given value): (.*)", text)
    if not (key and wanted and got):
        lines = [line.strip(" -") for line in text.splitlines()]
        return "; ".join(line for line in lines if line and not line.startswith("usage"))
    rule = " or ".join(re.sub(r"<class '(\w+)'>|typing\.", r"\1", item) for item in wanted if "[<" not in item)
    return f"{key[1] or key[2]} must be {rule}, got {got[1]}"
