"""The hash of a run: what counts, and that neither a new key nor a changed default touches hashes of finished runs."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, make_dataclass
from typing import Any, get_type_hints

import pytest

from vnet.core.config import Config, PointsConfig, differing_keys, flatten, hash_defaults, key, load_config
from vnet.core.config import load_resolved as load
from vnet.core.config.hashing import LEFT_OUT, config_hash

# What was done before each key existed. Add a line for a new key; never change one.
FROZEN = {
    "name": "",
    "arm": "dense",
    "seed": 0,
    "data.fold": 0,
    "data.spacing_mm": None,
    "data.phantoms": 0,
    "data.phantom_kind": "organs",
    "network.width": 16,
    "network.kernel": 5,
    "network.down": [1, 2, 3, 3, 3],
    "network.up": [3, 3, 2, 1],
    "network.strides": [[2, 2, 2]] * 4,
    "network.norm": "batch",
    "network.activation": "prelu",
    "network.dropout": 0.0,
    "network.output_stride": 1,
    "points.refine": True,
    "points.num_points": 2048,
    "points.oversample_ratio": 10.0,
    "points.importance_ratio": 1.0,
    "points.quotas": None,
    "points.refine_fraction": 0.06,
    "points.max_margin": None,
    "points.features": ["encoder1", "decoder"],
    "points.image": True,
    "points.window": 1,
    "points.width": 64,
    "points.layers": 3,
    "training.steps": 1000,
    "training.seconds": None,
    "training.batch": 2,
    "training.patch": [48, 64, 48],
    "training.precision": "32-true",
    "training.optimizer": "adamw",
    "training.schedule": "one_cycle",
    "training.learning_rate": 3e-3,
    "training.weight_decay": 1e-2,
    "training.clip_norm": 12.0,
    "training.mirror": [],
    "training.validate_every": 250,
    "training.checkpoint_every": 100,
    "training.max_bad_steps": 10,
    "training.init_from": None,
    "training.point_weight": 1.0,
    "training.point_dice_weight": 0.0,
    "inference.overlap": 0.25,
    "inference.mirror": [],
    "inference.largest_component": False,
    "inference.min_component_mm3": 0.0,
    "inference.precision": "32-true",
    "metrics.tolerance_mm": 1.0,
}


def counted(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not any(k == place or k.startswith(f"{place}.") for place in LEFT_OUT)}


def test_every_key_has_a_frozen_hash_default() -> None:
    """A key that is not in `FROZEN` is new: add it there with what was done before it existed."""
    assert counted(hash_defaults(Config)) == FROZEN


def test_the_hash_names_what_is_computed_and_not_where() -> None:
    base = load_config(["--data.root", "a"])
    same = ["--data.root b --data.cache c", "--run_root elsewhere", "--threads 1", "--study.keep true"]
    other = ["--seed 1", "--data.fold 1", "--training.steps 5", "--points.refine_fraction 0.1", "--arm coarse_s2"]
    assert all(load_config(["--data.root", "a", *w.split()]).hash("d") == base.hash("d") for w in same)
    hashes = {load_config(["--data.root", "a", *w.split()]).hash("d") for w in other}
    assert len(hashes | {base.hash("d"), base.hash("other data")}) == len(other) + 2


def test_hashes_of_known_configs_stay() -> None:
    """Written down once; a committed run is found by such a hash."""
    assert Config(name="x").hash("d") == "53cedb347d97bb26"
    words = [
        "--name",
        "y",
        "--arm",
        "pointrend_s4",
        "--seed",
        "2",
        "--points.window",
        "1",
        "--network.kernel",
        "[1,3,3]",
    ]
    assert load_config(words).hash("d") == "06a3d990b3637238"


def copied(schema: type, **changed: Field[Any]) -> Any:
    """A schema of the same keys, with fields put in place of its own or added to it."""
    types = get_type_hints(schema)
    own = [(item.name, types[item.name], changed.pop(item.name, item_copy(item))) for item in fields(schema)]
    added = [(name, item.type, item) for name, item in changed.items()]
    return make_dataclass("Copy", [*own, *added], frozen=True, kw_only=True)


def item_copy(item: Field[Any]) -> Any:
    return field(default=item.default, default_factory=item.default_factory, metadata=item.metadata)  # type: ignore[call-overload]


def with_points(**changed: Any) -> Any:
    """`Config` with other keys under `points`."""
    points = copied(PointsConfig, **changed)
    section = field(default_factory=points)
    types = get_type_hints(Config)
    own = [
        (
            item.name,
            points if item.name == "points" else types[item.name],
            section if item.name == "points" else item_copy(item),
        )
        for item in fields(Config)
    ]
    return make_dataclass("ConfigCopy", own, frozen=True, kw_only=True)


def typed(kind: type, item: Any) -> Any:
    item.type = kind
    return item


def test_a_new_key_leaves_every_hash_alone() -> None:
    config = load_config(["--name", "x", "--arm", "pointrend_s2"])
    schema = with_points(cells=typed(int, key(3, hash_default=3)))
    nested = config.to_dict()
    nested["points"]["cells"] = 3
    assert config_hash(nested, schema, "d") == config.hash("d")
    nested["points"]["cells"] = 4
    assert config_hash(nested, schema, "d") != config.hash("d")


def test_a_new_key_whose_default_does_something_new_counts() -> None:
    """As `points.window`: the default is 3, and what was done before there was a key is 1."""
    config = load_config(["--name", "x"])
    schema = with_points(cells=typed(int, key(3, hash_default=1)))
    nested = config.to_dict()
    nested["points"]["cells"] = 1
    assert config_hash(nested, schema, "d") == config.hash("d")
    nested["points"]["cells"] = 3
    assert config_hash(nested, schema, "d") != config.hash("d")


def test_a_changed_default_changes_no_hash_of_a_resolved_config() -> None:
    config = load_config(["--name", "x", "--points.width", "32"])
    schema = with_points(width=typed(int, key(128, hash_default=64)), layers=typed(int, key(5, hash_default=3)))
    assert config_hash(config.to_dict(), schema, "d") == config.hash("d")
    # a config that relied on the old default computes something else now
    relying = load_config(["--name", "x"]).to_dict()
    relying["points"]["width"] = 128
    assert config_hash(relying, schema, "d") != load_config(["--name", "x"]).hash("d")


def test_a_key_without_hash_default_is_a_fault_of_the_schema() -> None:
    @dataclass(frozen=True)
    class Section:
        cells: int = 3

    with pytest.raises(TypeError, match="Section: cells has no hash_default"):
        hash_defaults(Section)


def test_a_key_that_a_resolved_config_lacks_means_what_was_done_then() -> None:
    old = Config(name="x").to_dict()
    for section, name in (("points", "window"), ("training", "point_dice_weight"), ("inference", "mirror")):
        del old[section][name]
    config = load(old)
    assert (config.points.window, config.training.point_dice_weight, config.inference.mirror) == (1, 0.0, ())
    assert load(old, ["--points.window", "7"]).points.window == 7
    assert load(old | {"points": old["points"] | {"window": 3}}).points.window == 3
    assert config_hash(old, Config, "d") == config.hash("d")


def test_differing_keys_are_named_with_both_values() -> None:
    one = load_config(["--name", "x", "--training.steps", "5", "--run_root", "here"]).to_dict()
    two = load_config(["--name", "x", "--network.width", "8", "--data.root", "there"]).to_dict()
    assert differing_keys(one, two, Config) == {"training.steps": (5, 1000), "network.width": (16, 8)}
    del two["points"]["window"]  # from before the key existed: 1
    assert differing_keys(one, two, Config)["points.window"] == (3, 1)
    assert set(flatten(one)) >= set(FROZEN)
