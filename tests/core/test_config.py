"""Config: order of precedence, built-in arms, refusals, every file in configs/, and hashes that stay."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from vnet.core.config import (
    ARMS,
    Config,
    PointsConfig,
    differing_keys,
    flatten,
    hash_defaults,
    key,
    known_keys,
    load_config,
    load_resolved,
    unflatten,
)
from vnet.core.config import load_resolved as load
from vnet.core.config.keys import LEFT_OUT, config_hash
from vnet.core.errors import InputError

FILES = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if path.stem != "nuclei"]  # that one is of scripts/instances.py


def write(folder: Path, **nested: object) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(nested))
    return str(path)


def test_defaults_file_arm_command_line(tmp_path: Path) -> None:
    arms = {"mine": {"training": {"steps": 3, "batch": 3}}}
    file = write(tmp_path, training={"steps": 2, "batch": 2, "patch": [16, 32, 48]}, study={"arms": arms})
    config = load_config(["--config", file, "--arm", "mine", "--training.batch", "4"])
    assert config.training.patch == (16, 32, 48)  # file over default
    assert config.training.steps == 3  # arm over file
    assert config.training.batch == 4  # command line over arm
    assert config.name == "mine"
    assert config.run_folder == Path("runs/mine/mine/fold0_seed0")


def test_an_arm_of_the_study_builds_on_the_built_in_one(tmp_path: Path) -> None:
    file = write(tmp_path, study={"arms": {"coarse_s4": {"training": {"steps": 7}}}})
    config = load_config(["--config", file, "--arm", "coarse_s4"])
    assert (config.network.output_stride, config.points.num_points, config.training.steps) == (4, 0, 7)


@pytest.mark.parametrize("arm", ARMS)
def test_built_in_arms(arm: str) -> None:
    config = load_config(["--arm", arm])
    assert config.network.output_stride == {"e": 1, "1": 1, "2": 2, "4": 4}[arm[-1]]
    assert config.has_head == (arm.startswith(("pointrend_", "points_only_")) or arm in ("lean_s2", "lean_s4"))
    small = config.network.down == (1, 1, 2, 2, 2) and config.network.up == (1, 1, 1, 1)
    assert small == arm.startswith(("lean_", "points_only_"))
    assert config.network.width == Config(name="x").network.width  # an arm sets nothing else


def test_a_small_body_keeps_what_the_file_says_of_the_rest(tmp_path: Path) -> None:
    file = write(tmp_path, network={"width": 8, "kernel": 3, "down": [1, 2, 3, 3, 3], "up": [2, 2, 1, 1]})
    lean = load_config(["--config", file, "--arm", "lean_s4"])
    assert (lean.network.width, lean.network.kernel) == (8, 3)
    assert (lean.network.down, lean.network.up, lean.network.output_stride) == ((1, 1, 2, 2, 2), (1, 1, 1, 1), 4)
    assert load_config(["--config", file, "--arm", "pointrend_s4"]).network.down == (1, 2, 3, 3, 3)


def test_what_the_arms_of_a_study_have_in_common(tmp_path: Path) -> None:
    file = write(tmp_path, study={"arms": {"mine": {"training": {"steps": 7}}}}, training={"steps": 5})
    words = ["--config", file, "--arm", "mine", "--seed", "3"]
    common = load_config(words, apply_arm=False)
    assert (common.training.steps, common.arm, common.seed) == (5, "mine", 3)
    assert load_config(words).training.steps == 7


def test_a_resolved_config_reads_back_the_same() -> None:
    config = load_config(["--arm", "pointrend_s2", "--name", "x", "--data.fold", "all", "--network.kernel", "[1,3,3]"])
    assert load_resolved(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.fol", "1"], "unknown key data.fol; did you mean data.fold?"),
        (["--points.importance_ratio", "1.5"], r"points.importance_ratio must lie in \[0, 1\], got 1.5"),
        (["--data.fold", "-1"], "data.fold must be 0 or more, or all, got -1"),
        (["--data.fold", "first"], "data.fold must be int or .*all.*, got first"),
        (["--training.steps", "many"], "training.steps must be int, got many"),
        (["--training.steps", "0"], "training.steps must be 1 or more, got 0"),
        (["--training.patch", "[1,2]"], "training.patch"),
        (["--training.patch", "[16,16,9]"], "training.patch must leave more than one voxel to normalise"),
        (["--training.learning_rate", "-1"], "training.learning_rate must be positive, got -1"),
        (["--network.kernel", "4"], "network.kernel must be odd and positive, got 4"),
        (["--network.output_stride", "3"], "network.output_stride must be the stride of a decoder stage"),
        (["--network.up", "[1]"], "network.up must have one stage less"),
        (["--network.norm", "layer"], "network.norm"),
        (["--data.spacing_mm", "[1,1,0]"], "data.spacing_mm must be three positive numbers"),
        (["--points.features", "[encoder9]"], "points.features must name stages of .*got encoder9"),
        (["--arm", "pointrend"], "unknown arm pointrend; it is one of coarse_s2"),
        (["--name", "../x"], "name must be a plain folder name"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--training.steps"], "command line: .*steps"),
    ],
)
def test_refusals_of_the_command_line(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(words)
    assert all("\n" not in fault for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: {widht: 8}", "mine.yaml: unknown key network.widht; did you mean network.width?"),
        ("network: 3", "mine.yaml: network must hold keys and values, got 3"),
        ("- 1", "mine.yaml: must hold keys and values, got list"),
        ("a: [", "mine.yaml: not valid YAML"),
        ("name: !!python/object/apply:os.system [ls]", "mine.yaml: not valid YAML"),
        ("study: {arms: {dense: {network: {widht: 1}}}}", "study.arms.dense: unknown key network.widht"),
        ("study: {arms: {mine: {network: {width: x}}}}", "mine.yaml: network.width must be int, got x"),
        ("study: {arms: {mine: {seed: 3}}}", "study.arms.mine cannot set seed"),
        ("study: {comparisons: [dense - nobody]}", "study.comparisons must be `A - B` of the arms"),
        ("training: {steps: 1.5}", "training.steps must be int, got 1.5"),
    ],
)
def test_refusals_of_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(["--config", str(path)])


def test_a_flat_config_is_nested_again() -> None:
    nested = Config(name="x").to_dict()
    assert unflatten(flatten(nested)) == nested


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_says_what_it_is_for(path: Path) -> None:
    load_config(["--config", str(path)])
    head = path.read_text().split("\n\n")[0]
    assert all(f"# {word}:" in head for word in ("Run", "Cost", "Result"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("points.train_points", "points.num_points"),
        ("points.oversample", "points.oversample_ratio"),
        ("points.importance", "points.importance_ratio"),
        ("points.test_share", "points.refine_fraction"),
        ("points.margin", "points.max_margin"),
        ("study.margin", "study.equivalence_margin"),
    ],
)
def test_a_key_of_old_is_refused_with_its_name_of_today(old: str, new: str, tmp_path: Path) -> None:
    section, key = old.split(".")
    rule = f"unknown key {old}; it is called {new} now"
    with pytest.raises(InputError, match=f"^command line: {rule}$"):
        load_config([f"--{old}", "1"])
    with pytest.raises(InputError, match=f"mine.yaml: {rule}$"):
        load_config(["--config", write(tmp_path, **{section: {key: 1}})])
    with pytest.raises(InputError, match=f"^config.yaml: {rule}$"):
        load_resolved({"name": "x", section: {key: 1}})
    if section != "study":
        with pytest.raises(InputError, match=f"mine.yaml: study.arms.dense: {rule}$"):
            load_config(["--config", write(tmp_path, study={"arms": {"dense": {section: {key: 1}}}})])
    assert new in known_keys(Config)


def test_keys_of_the_contract() -> None:
    contract = """name arm seed threads run_root data.root data.fold data.spacing_mm data.cache network.width
    network.kernel network.norm network.activation network.output_stride points.refine points.num_points
    points.oversample_ratio points.importance_ratio points.refine_fraction points.max_margin training.steps
    training.seconds training.batch training.patch training.precision training.learning_rate training.validate_every
    training.checkpoint_every training.max_bad_steps training.init_from study.arms study.folds study.seeds
    study.comparisons study.equivalence_margin study.keep metrics.tolerance_mm"""
    assert set(contract.split()) <= set(known_keys(Config))


def test_keys_of_the_head_are_checked() -> None:
    for words, rule in (
        (["--points.window", "2"], "points.window must be odd and positive, got 2"),
        (["--points.quotas", "[0.6,0.6]"], "points.quotas must be shares of sum at most 1"),
        (["--study.spread_from", "../x"], "study.spread_from must be the name of a study"),
    ):
        with pytest.raises(InputError, match=rule):
            load_config(words)


@pytest.mark.parametrize("key", ["seed", "training.steps", "points.max_margin", "network.kernel"])
def test_null_is_refused_where_a_key_must_have_a_value(key, tmp_path):
    value = None
    for part in reversed(key.split(".")):
        value = {part: value}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(value))
    if key == "points.max_margin":  # null is one of its values
        assert load_config(["--config", str(path)]).points.max_margin is None
        return
    with pytest.raises(InputError, match=f"{key} must have a value, got null; leave the key out for its default"):
        load_config(["--config", str(path)])


# What was done before each key existed. Add a line for a new key; never change one.
FROZEN = {
    "name": "",
    "arm": "dense",
    "seed": 0,
    "data.fold": 0,
    "data.spacing_mm": None,
    "data.groups": None,
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
    "network.stem": "full",
    "network.thin_stage": 0,
    "points.refine": True,
    "points.num_points": 2048,
    "points.logits": "head",
    "points.oversample_ratio": 10.0,
    "points.importance_ratio": 1.0,
    "points.quotas": None,
    "points.refine_fraction": 0.06,
    "points.max_margin": None,
    "points.features": ["encoder1", "decoder"],
    "points.image": True,
    "points.window": 1,
    "points.image_convolution": 0,
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
    "training.augment": True,
    "training.top_k_share": 1.0,
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
    other = ["--data.groups g.csv", "--points.logits network", "--training.augment false", "--training.top_k_share 0.1"]
    other += ["--network.output_stride 4 --network.thin_stage 4", "--network.output_stride 4"]
    other += ["--seed 1", "--data.fold 1", "--training.steps 5", "--points.refine_fraction 0.1", "--arm coarse_s2"]
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


def test_a_run_from_before_margins_needed_a_reason_is_read() -> None:
    old = Config(name="x", seed=3).to_dict()
    old["study"] |= {"equivalence_margin": 0.002}
    del old["study"]["equivalence_reason"]
    read = load_resolved(old)
    assert (read.seed, read.study.equivalence_margin) == (3, None)
    assert read.hash("data") == Config(name="x", seed=3).hash("data")
