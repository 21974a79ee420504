"""A config from YAML and the command line: defaults < file < arm < command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vnet.core.checkout import config_file
from vnet.core.config.arms import ARMS
from vnet.core.config.hashing import hash_defaults
from vnet.core.config.keys import flatten, known_keys, merge, refuse_unknown, unflatten
from vnet.core.config.parser import build_config, config_parser, option_values, parse_command_line
from vnet.core.config.schema import Config
from vnet.core.config.yaml_file import read_config_file
from vnet.core.errors import InputError

SET_BY_THE_STUDY = ("arm", "name", "seed", "data.fold", "run_root")  # keys that no arm may set


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
