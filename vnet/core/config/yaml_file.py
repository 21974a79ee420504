"""The YAML file of a config, bounded in size before it is unfolded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vnet.core.config.keys import flatten, known_keys, refuse_unknown
from vnet.core.config.schema import Config
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
