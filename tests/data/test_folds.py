"""Folds by nnU-Net's rule and by splits files."""

import json

import pytest
from sklearn.model_selection import KFold

from vnet.core.errors import InputError
from vnet.data.dataset import open_dataset
from vnet.data.folds import select_fold

# KFold(5, shuffle=True, random_state=12345) of seven sorted names, written out
SEVEN = [("case_03", "case_06"), ("case_00", "case_04"), ("case_01",), ("case_05",), ("case_02",)]


def test_folds_are_nnunets(decathlon):
    dataset = open_dataset(decathlon(7))
    names = {case.name for case in dataset.cases}
    folds = [select_fold(dataset, number) for number in range(5)]
    assert sorted(name for fold in folds for name in fold.val) == sorted(names)
    assert [fold.val for fold in folds] == SEVEN
    assert all(set(fold.train) == names - set(fold.val) for fold in folds)


def test_below_five_cases_each_is_left_out_once(decathlon):
    dataset = open_dataset(decathlon(3))
    assert [select_fold(dataset, number).val for number in range(3)] == [("case_00",), ("case_01",), ("case_02",)]
    with pytest.raises(InputError, match="data.fold: fold 3 does not exist; this data set has folds 0 to 2, and all"):
        select_fold(dataset, 3)


def test_all_trains_on_every_case(decathlon):
    fold = select_fold(open_dataset(decathlon(3)), "all")
    assert fold.train == ("case_00", "case_01", "case_02")
    assert fold.val == ()


def test_a_single_case_makes_an_empty_fold(decathlon):
    dataset = open_dataset(decathlon(1))
    with pytest.raises(InputError, match="data.fold: fold 0 has no case to validate on; add labelled cases"):
        select_fold(dataset, 0)
    assert select_fold(dataset, "all").train == ("case_00",)


@pytest.mark.parametrize("file", ["splits.json", "splits_final.json"])
def test_a_splits_file_is_honoured(file, decathlon):
    root = decathlon(3)
    folds = [{"train": ["case_02"], "val": ["case_01", "case_00"]}]
    (root / file).write_text(json.dumps({"folds": folds} if file == "splits.json" else folds))
    dataset = open_dataset(root)
    assert select_fold(dataset, 0).train == ("case_02",)
    assert select_fold(dataset, 0).val == ("case_00", "case_01")
    with pytest.raises(InputError, match="fold 1 does not exist"):
        select_fold(dataset, 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"train": ["case_00"], "val": []}, "data.fold: fold 0 has no case to validate on"),
        ({"train": [], "val": ["case_00"]}, "data.fold: fold 0 has no case to train on"),
        ({"train": ["case_00", "x"], "val": ["case_01"]}, r"splits.json: fold 0 train names 'x', not a labelled case"),
        ({"train": ["case_00"], "val": ["case_00"]}, "fold 0 has 'case_00' in both train and val"),
        ({"train": ["case_00", "case_00"], "val": ["case_01"]}, "train names a case twice"),
        ({"train": "case_00", "val": ["case_01"]}, "train must be a list of case names, got 'case_00'"),
        ({"train": [{}], "val": ["case_01"]}, "train must be a list of case names"),
        ({"train": ["case_00"]}, r'fold 0 must be \{"train"'),
    ],
)
def test_splits_that_cannot_serve(entry, message, decathlon):
    root = decathlon(3)
    (root / "splits.json").write_text(json.dumps({"folds": [entry]}))
    with pytest.raises(InputError, match=message):
        select_fold(open_dataset(root), 0)


@pytest.mark.parametrize("text", ['{"folds": []}', '{"folds": 3}', "{}"])
def test_a_splits_file_without_folds_is_refused(text, decathlon):
    root = decathlon(3)
    (root / "splits.json").write_text(text)
    with pytest.raises(InputError, match=r"splits.json: must list folds"):
        select_fold(open_dataset(root), 0)


@pytest.mark.decathlon
def test_the_hippocampus_folds_are_those_of_its_file(hippocampus):
    dataset = open_dataset(hippocampus)
    listed = json.loads((hippocampus / "splits.json").read_text())["folds"]
    for number, entry in enumerate(listed):
        fold = select_fold(dataset, number)
        assert fold.val == tuple(sorted(entry["val"]))
        assert fold.train == tuple(sorted(entry["train"]))
    with pytest.raises(InputError, match="folds 0 to 3"):
        select_fold(dataset, 4)


@pytest.mark.decathlon
def test_without_its_file_the_rule_divides_the_hippocampus(hippocampus, tmp_path):
    for name in ("dataset.json", "imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(hippocampus.resolve() / name)
    dataset = open_dataset(tmp_path)
    names = sorted(case.name for case in dataset.cases)
    train, val = list(KFold(5, shuffle=True, random_state=12345).split(names))[2]
    assert select_fold(dataset, 2).val == tuple(names[i] for i in val)
    assert select_fold(dataset, 2).train == tuple(names[i] for i in train)
