"""Config: order of precedence, refusals, the hash, and every file in configs/."""

from pathlib import Path

import pytest
import yaml

from vnet.core.config import ARMS, Config, load_config
from vnet.core.config.keys import flatten, unflatten
from vnet.core.config.loading import known_keys
from vnet.core.errors import InputError

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))


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
    assert config.has_head == arm.startswith("pointrend")


def test_a_resolved_config_reads_back_the_same() -> None:
    config = load_config(["--arm", "pointrend_s2", "--name", "x", "--data.fold", "all", "--network.kernel", "[1,3,3]"])
    assert load_config([], base=yaml.safe_load(config.to_yaml())) == config


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


def test_the_hash_names_what_is_computed_and_not_where() -> None:
    base = load_config(["--data.root", "a"])
    same = ["--data.root b --data.cache c", "--run_root elsewhere", "--threads 1", "--study.keep true"]
    other = ["--seed 1", "--data.fold 1", "--training.steps 5", "--points.refine_fraction 0.1", "--arm coarse_s2"]
    assert all(load_config(["--data.root", "a", *w.split()]).hash("d") == base.hash("d") for w in same)
    hashes = {load_config(["--data.root", "a", *w.split()]).hash("d") for w in other}
    assert len(hashes | {base.hash("d"), base.hash("other data")}) == len(other) + 2


def test_the_hash_of_a_known_config_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key added later counts only where it asks for something else than was done before there was a key."""
    config, as_then = Config(name="x"), load_config(["--name", "x", "--training.point_weight", "2"])
    monkeypatch.setattr("vnet.core.config.schema.ADDED_KEYS", {})
    before, with_key = config.hash("d"), as_then.hash("d")
    monkeypatch.setattr("vnet.core.config.schema.ADDED_KEYS", {"training.point_weight": 2.0})
    assert config.hash("d") == before  # the default is not what was done then: it counts
    assert as_then.hash("d") not in (before, with_key)  # the hash of a config that knows no such key


def test_the_config_of_a_run_from_before_a_key_means_what_was_done_then(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Config(name="x").to_dict()
    del old["points"]["window"]
    monkeypatch.setattr("vnet.core.config.schema.ADDED_KEYS", {"points.window": 5})
    assert load_config([], base=old).points.window == 5
    assert load_config(["--points.window", "7"], base=old).points.window == 7
    old["points"]["window"] = 3
    assert load_config([], base=old).points.window == 3


def test_a_flat_config_is_nested_again() -> None:
    nested = Config(name="x").to_dict()
    assert unflatten(flatten(nested)) == nested


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_and_says_what_it_is_for(path: Path) -> None:
    load_config(["--config", str(path)])
    head = path.read_text().split("\n\n")[0]
    assert all(f"# {word}:" in head for word in ("Run", "Cost", "Result"))


def test_keys_of_the_contract() -> None:
    contract = """name arm seed threads run_root data.root data.fold data.spacing_mm data.cache network.width
    network.kernel network.norm network.activation network.output_stride points.refine points.num_points
    points.oversample_ratio points.importance_ratio points.refine_fraction points.max_margin training.steps
    training.seconds training.batch training.patch training.precision training.learning_rate training.validate_every
    training.checkpoint_every training.max_bad_steps training.init_from study.arms study.folds study.seeds
    study.comparisons study.equivalence_margin study.keep metrics.tolerance_mm"""
    assert set(contract.split()) <= set(known_keys())


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
