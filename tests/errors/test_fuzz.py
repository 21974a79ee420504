"""Mutated volumes, descriptions, splits, configs and command lines are read, or refused in lines: never a traceback, a
hang or a gigabyte."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fixtures import CONFIG, NAMES
from vnet.core.config import Config, known_keys, load_config, load_resolved
from vnet.core.errors import InputError
from vnet.core.hardware import peak_memory_mib
from vnet.data.dataset import open_dataset
from vnet.data.folds import select_fold
from vnet.data.volumes import read_image, read_label

pytestmark = pytest.mark.fuzz
MOST_SECONDS, MOST_MIB = 10, 1024
THOROUGH = settings.get_current_profile_name() == "thorough"  # pytest --hypothesis-profile thorough
FUZZ = settings(
    deadline=None,
    max_examples=60 if THOROUGH else 10,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FUZZ_CONFIGS = settings(FUZZ, max_examples=25 if THOROUGH else 5)  # reading one takes a quarter of a second


@contextmanager
def bounded() -> Iterator[None]:
    """Fails on a hang and on memory; lets an `InputError` pass, whose lines must be lines."""

    def hang(*_: object) -> None:
        raise AssertionError(f"not done in {MOST_SECONDS} s")

    told: list[InputError] = []
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(MOST_SECONDS)
    # not reset_peak_memory: its collection of garbage takes longer than most examples
    with suppress(OSError):  # Linux alone counts the peak anew
        Path("/proc/self/clear_refs").write_text("5")
    used = peak_memory_mib()
    try:
        yield
    except InputError as refusal:
        told.append(refusal)
    finally:
        added = peak_memory_mib() - used
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert added < MOST_MIB
    for refusal in told:
        assert refusal.faults
        assert all(line.strip() and "\n" not in line for line in refusal.faults)
        assert len(refusal.report()) < 100_000


# values of every kind that JSON and YAML know, the sizes that break things among them
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70000),
    st.sampled_from([2**31, 2**63, 10**30, -(10**30), 0.5, -1.0, 1e308, float("inf"), float("nan")]),
    st.text(max_size=12),
    st.sampled_from(["", ".", "..", "/", "../../x.nii.gz", "a.nii.gz", "imagesTr/a.nii.gz", "\x00.nii", "\ud800", "0"]),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner))


def header_mutations() -> st.SearchStrategy[list[tuple[int, bytes]]]:
    return st.lists(st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), min_size=1, max_size=5)


def volume_bytes(double: bool) -> bytes:
    kind = nib.Nifti2Image if double else nib.Nifti1Image
    return bytes(kind(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes())


@FUZZ
@given(changes=header_mutations(), double=st.booleans(), cut=st.integers(0, 900), packed=st.booleans())
@example(changes=[(42, b"\x10\x27\x10\x27\x10\x27")], double=False, cut=0, packed=True)  # 10^12 voxels
@example(changes=[(40, b"\x07\x00")], double=False, cut=0, packed=False)
@example(changes=[(108, b"\x00\x00\xc0\x7f")], double=False, cut=0, packed=True)  # voxels start at byte NaN
@example(changes=[(440, b"\0\0\0\0\0\0\0`")], double=True, cut=0, packed=False)  # an affine of 1e154
def test_volumes(changes: Any, double: bool, cut: int, packed: bool, tmp_path: Path) -> None:
    raw = bytearray(volume_bytes(double))
    for place, data in changes:
        raw[place : place + len(data)] = data
    content = gzip.compress(bytes(raw), 1) if packed else bytes(raw)
    path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
    path.write_bytes(content[: len(content) - cut] if cut else content)
    for read in (lambda: read_image([path]), lambda: read_label(path)):
        with bounded():
            volume = read()
            assert np.isfinite(volume.array).all()
            assert min(volume.spacing_mm) > 0


def description() -> dict[str, Any]:
    return {
        "name": "World",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "near", "2": "far"},
        "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in NAMES],
    }


def places(nested: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a nested value has parts."""
    pairs = nested.items() if isinstance(nested, dict) else enumerate(nested) if isinstance(nested, list) else []
    return [one for key, below in pairs for one in [(*prefix, key), *places(below, (*prefix, key))]]


def replaced(nested: Any, place: tuple[Any, ...], value: Any) -> Any:
    target = nested
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return nested


def write_description(root: Path, content: str) -> None:
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(content, errors="surrogatepass")


def open_and_divide(root: Path) -> None:
    dataset = open_dataset(root)
    for fold in (0, 1, "all"):
        select_fold(dataset, fold)  # type: ignore[arg-type]


@FUZZ
@given(place=st.sampled_from(places(description())), value=values)
@example(place=("training", 0, "image"), value="\x00.nii.gz")
@example(place=("training", 0, "image"), value="x" * 5000 + ".nii.gz")
@example(place=("training", 0, "image"), value=".nii.gz")
@example(place=("labels",), value={"0": "a", "1": {"b": 1}})
@example(place=("name",), value="\ud800")
def test_descriptions(place: tuple[Any, ...], value: Any, world_data: Path) -> None:
    write_description(world_data, json.dumps(replaced(description(), place, value)))
    with bounded():
        open_and_divide(world_data)


@FUZZ
@given(content=st.text(max_size=200) | st.recursive(leaves, st.lists, max_leaves=20).map(json.dumps))
@example(content="[" * 200_000)
@example(content='{"labels": ' * 60_000)
@example(content='{"numTraining": ' + "9" * 5000 + "}")
@example(content="NaN")
def test_descriptions_of_any_text(content: str, world_data: Path) -> None:
    path = world_data / "dataset.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with bounded():
        open_and_divide(world_data)


@FUZZ
@given(value=values, final=st.booleans())
@example(value={"folds": [{"train": [[]], "val": ["a"]}]}, final=False)
@example(value=[{"train": ["a"], "val": [None]}], final=True)
@example(value={"folds": [{"train": ["\ud800"], "val": ["a"]}]}, final=False)
def test_splits(value: Any, final: bool, world_data: Path) -> None:
    write_description(world_data, json.dumps(description()))
    path = world_data / ("splits_final.json" if final else "splits.json")
    path.write_text(json.dumps(value))
    try:
        with bounded():
            open_and_divide(world_data)
    finally:
        path.unlink()


def nested_config(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def load(path: Path, words: list[str]) -> Config:
    config = load_config(["--config", str(path), *words])
    config.hash("data")
    load_resolved(yaml.safe_load(config.to_yaml()))
    return config


def write_yaml(path: Path, value: Any) -> None:
    path.write_bytes(yaml.safe_dump(value, allow_unicode=False).encode("utf-8", "surrogatepass"))


@FUZZ_CONFIGS
@given(
    key=st.sampled_from([*known_keys(Config), "study", "data", "network", "training", "points", "nobody"]), value=values
)
@example(key="training.steps", value=10**30)
@example(key="seed", value=float("nan"))
@example(key="study.arms", value={"dense": {"network": {"output_stride": [1, 2]}}})
@example(key="study.arms", value={"": {}})
@example(key="network.strides", value=[])
@example(key="network.strides", value=[[2, 2]])
@example(key="name", value="\x00")
@example(key="data.fold", value=True)
def test_configs(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_yaml(path, CONFIG | nested_config(key, value))
    with bounded():
        load(path, [])


@FUZZ_CONFIGS
@given(content=st.text(max_size=120))
@example(content="a: &a [*a]")
@example(content="data: &a {root: *a}")
@example(content="? [1, 2]\n: 3")
@example(content="2024-13-45: 1")
@example(content="seed: 1:1:1:1")
@example(content="seed: " + "9" * 5000)
@example(content="name: !!binary aGFybQ==")
@example(content="<<: [1]")
@example(content="[" * 5000)
@example(content="\n".join(["a: &a [x, x]", *(f"b{n}: &b{n} [*a, *a]" for n in range(200))]))
def test_configs_of_any_text(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with bounded():
        load(path, [])


@FUZZ_CONFIGS
@given(key=st.sampled_from(known_keys(Config)), word=st.text(max_size=20))
@example(key="training.patch", word="[1,")
@example(key="points.features", word="[null]")
@example(key="data.root", word="\x00")
@example(key="study.folds", word="[all]")
@example(key="name", word="")
def test_words_of_a_command(key: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    with bounded():
        load(path, [f"--{key}", word])


@pytest.fixture
def world_data(template: Path, tmp_path: Path) -> Path:
    """The data set's folder with a description of its own; the volumes are links."""
    root = tmp_path / "data"
    root.mkdir(exist_ok=True)
    for name in ("imagesTr", "labelsTr"):
        (root / name).symlink_to(template / "data" / name)
    return root
