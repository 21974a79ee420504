"""Folds by nnU-Net's rule and by splits files."""

import json

import nibabel as nib
import numpy as np
import pytest
from sklearn.model_selection import KFold

from vnet.core.environment import groups_file
from vnet.core.errors import InputError
from vnet.data.dataset import open_dataset
from vnet.data.folds import Fold, all_folds, grouped_folds, read_groups, select_fold

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


PAIRS = {"a1": "A", "a2": "A", "b1": "B", "b2": "B", "c1": "C", "d1": "D", "d2": "D", "e1": "E"}


def by_case(*parts: str) -> list[Fold]:
    """Folds whose validation cases are written as words."""
    names = sorted(PAIRS)
    return [Fold(tuple(n for n in names if n not in part.split()), tuple(part.split())) for part in parts]


def test_the_first_fold_takes_whole_subjects_and_the_others_divide_the_rest() -> None:
    folds = grouped_folds(by_case("a1 c1", "a2 b1 d1", "b2 d2 e1"), PAIRS)
    assert folds[0] == Fold(("b1", "b2", "d1", "d2", "e1"), ("a1", "a2", "c1"))
    others = ["B", "D", "E"]
    for fold, (_, held) in zip(folds[1:], KFold(2, shuffle=True, random_state=12345).split(others), strict=True):
        assert {PAIRS[name] for name in fold.val} == {others[i] for i in held}
    for fold in folds:
        assert sorted((*fold.train, *fold.val)) == sorted(PAIRS)
        assert not {PAIRS[name] for name in fold.train} & {PAIRS[name] for name in fold.val}
    # every case outside of the first fold is validated on once
    assert sorted(name for fold in folds for name in fold.val) == sorted(PAIRS)


def test_two_folds_by_subject() -> None:
    folds = grouped_folds(by_case("a1", "b1 b2 d1 d2 e1"), PAIRS)
    assert [fold.val for fold in folds] == [("a1", "a2"), ("b1", "b2", "c1", "d1", "d2", "e1")]


def test_groups_that_cannot_serve(tmp_path) -> None:
    with pytest.raises(InputError, match="data.groups: names no subject of case 'e1'; add a row case,subject for each"):
        grouped_folds(by_case("a1", "e1"), {name: subject for name, subject in PAIRS.items() if name != "e1"})
    with pytest.raises(InputError, match="data.groups: 1 subjects have no case in fold 0, too few for 2 further folds"):
        grouped_folds(by_case("a1 b1 c1 d1", "e1", "a2"), PAIRS)
    table = tmp_path / "groups.csv"
    for text, message in (
        ("case,subject\na1,A\na1,B\n", "line 3 names case 'a1' again; keep one row a case"),
        ("case,subject\na1,\n", "line 2 must name a case and its subject; fill the cell"),
        ("name,subject\na1,A\n", "must have the columns case and subject, got 'name, subject'"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            read_groups(table)
    with pytest.raises(InputError, match="none.csv cannot be read .*; name a CSV file of case,subject"):
        read_groups(tmp_path / "none.csv")
    table.write_text("case,subject,age\nb1,B,3\na1, A ,4\n")
    assert read_groups(table) == {"b1": "B", "a1": "A"}


@pytest.mark.decathlon
def test_the_hippocampus_folds_by_subject(hippocampus) -> None:
    """Cases 2k - 1 and 2k are one subject; the old fold 0 with the other sides of its subjects is that of choices."""
    groups = read_groups(groups_file("hippocampus_subjects.csv"))
    assert all(subject == f"subject_{(int(case[-3:]) + 1) // 2:03d}" for case, subject in groups.items())
    dataset = open_dataset(hippocampus)
    old, folds = all_folds(dataset), all_folds(dataset, groups)
    chosen = {groups[name] for name in old[0].val}
    assert folds[0].val == tuple(sorted(case.name for case in dataset.cases if groups[case.name] in chosen))
    assert [len(fold.val) for fold in folds] == [80, 46, 39, 43]
    assert len({groups[name] for fold in folds[1:] for name in fold.val}) == 98
    for fold in folds:
        assert len(fold.train) + len(fold.val) == 208
        assert not {groups[name] for name in fold.train} & {groups[name] for name in fold.val}


@pytest.mark.decathlon
def test_the_two_sides_of_a_subject_are_alike_in_volume(hippocampus) -> None:
    """What the pairs are inferred from."""
    volumes = {}
    for path in sorted((hippocampus / "labelsTr").glob("*.nii.gz")):
        label = nib.load(path)
        volumes[int(path.name[12:15])] = np.count_nonzero(label.dataobj) * abs(np.linalg.det(label.affine[:3, :3]))

    def correlation(first: int) -> tuple[int, float]:
        pairs = [(volumes[n], volumes[n + 1]) for n in volumes if n % 2 == first and n + 1 in volumes]
        return len(pairs), float(np.corrcoef(np.transpose(pairs))[0, 1])

    assert correlation(1) == (60, pytest.approx(0.912, abs=5e-4))
    assert correlation(0) == (62, pytest.approx(0.121, abs=5e-4))
