"""Layouts, descriptions that are refused, and folds by nnU-Net's rule and by splits files."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from vnet.core.environment import groups_file
from vnet.core.errors import InputError
from vnet.data.dataset import open_dataset
from vnet.data.description import inner_path, path_fault
from vnet.data.folds import Fold, all_folds, grouped_folds, read_groups, select_fold
from vnet.data.volumes import read_image


def test_a_decathlon_folder_is_read_sorted_by_name(decathlon):
    root = decathlon(3)
    dataset = open_dataset(root)
    assert dataset.name == "Task"
    assert dataset.structures == ("background", "near", "far")
    assert dataset.modalities == ("MRI",)
    assert dataset.ignore is None
    assert dataset.faults == ()
    assert [case.name for case in dataset.cases] == ["case_00", "case_01", "case_02"]
    assert dataset.cases[1].images == (root / "imagesTr/case_01.nii.gz",)
    assert dataset.cases[1].label == root / "labelsTr/case_01.nii.gz"


def test_a_description_written_on_windows_is_read(decathlon):
    """Backslashes between folders, and a byte order mark before the first brace."""
    root = decathlon(2)
    expected = open_dataset(root).cases
    text = json.loads((root / "dataset.json").read_text())
    text["training"] = [
        {key: path.replace("./", "").replace("/", "\\") for key, path in entry.items()} for entry in text["training"]
    ]
    (root / "dataset.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(text).encode())
    dataset = open_dataset(root)
    assert dataset.cases == expected
    assert dataset.faults == ()
    assert [(finding.topic, finding.what, finding.warning) for finding in dataset.findings] == [
        ("dataset.json", "backslashes in paths are read as slashes", False)
    ]


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "near", "2": "far"},
        {"background": 0, "near": 1, "far": 2},
        {"background": "0", "near": "1", "far": "2"},
        {"far": "2", "background": "0", "near": 1},
    ],
)
def test_label_values_may_be_numbers_or_text(labels, decathlon):
    assert open_dataset(decathlon(1, labels=labels)).structures == ("background", "near", "far")


def test_structures_may_have_numbers_for_names(decathlon):
    assert open_dataset(decathlon(1, labels={"0": "background", "1": "3", "2": "4"})).structures == (
        "background",
        "3",
        "4",
    )
    assert open_dataset(decathlon(1, labels={"0": "0", "1": "1"})).structures == ("0", "1")


def findings(root):
    return [(finding.warning, finding.what) for finding in open_dataset(root).findings]


def test_volumes_that_dataset_json_does_not_list_are_named(decathlon, save):
    root = decathlon(2)
    for name in ("imagesTr/x.nii", "labelsTr/x.nii", "imagesTr/._case_00.nii.gz", "labelsTr/._a.nii"):
        save(root / name, np.zeros((5, 6, 7), np.uint8))
    for name in ("imagesTr/y.mha", "imagesTr/z.nrrd", "imagesTr/notes.txt"):
        (root / name).write_bytes(b"")
    assert findings(root) == [
        (True, "imagesTr: 1 not listed in dataset.json and not used: x.nii"),
        (True, "labelsTr: 1 not listed in dataset.json and not used: x.nii"),
        (True, "imagesTr: y.mha: MetaImage is not read; convert it to NIfTI"),
        (True, "imagesTr: z.nrrd: NRRD is not read; convert it to NIfTI"),
        (False, "imagesTr: 1 hidden file is passed over (._case_00.nii.gz)"),
        (False, "labelsTr: 1 hidden file is passed over (._a.nii)"),
    ]


def one_channel(root, save, images, labels):
    for name in images:
        save(root / "imagesTr" / name, np.zeros((5, 4, 3), np.float32))
    for name in labels:
        save(root / "labelsTr" / name, np.zeros((5, 4, 3), np.uint8))
    text = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(text))
    return open_dataset(root)


def test_an_nnunet_image_without_its_channel_number_is_used(tmp_path, save):
    dataset = one_channel(tmp_path, save, ["a_0000.nii.gz", "b.nii.gz"], ["a.nii.gz", "b.nii.gz"])
    assert dataset.faults == ()
    assert [(case.name, case.images[0].name) for case in dataset.cases] == [("a", "a_0000.nii.gz"), ("b", "b.nii.gz")]


def test_nnunet_names_of_four_digits_are_the_cases(tmp_path, save):
    names = ["BRATS_0001.nii.gz", "BRATS_0002.nii.gz"]
    dataset = one_channel(tmp_path, save, names, names)
    assert dataset.faults == ()
    assert [case.name for case in dataset.cases] == ["BRATS_0001", "BRATS_0002"]


def test_endings_in_capitals_are_read(tmp_path, save):
    save(tmp_path / "lower.nii", np.zeros((5, 4, 3), np.float32))
    dataset = one_channel(tmp_path, save, ["a_0000.nii.gz"], ["a.nii.gz"])
    (tmp_path / "imagesTr/a_0000.nii.gz").rename(tmp_path / "imagesTr/a_0000.NII.GZ")
    (tmp_path / "labelsTr/a.nii.gz").rename(tmp_path / "labelsTr/a.NII.GZ")
    dataset = open_dataset(tmp_path)
    assert dataset.faults == ()
    assert [path.name for path in dataset.cases[0].files] == ["a_0000.NII.GZ", "a.NII.GZ"]


def test_a_label_without_an_image_and_an_image_without_a_label_are_named(tmp_path, save):
    dataset = one_channel(tmp_path, save, ["a_0000.nii.gz", "b_0000.nii.gz"], ["b.nii.gz", "c.nii.gz"])
    assert [case.name for case in dataset.cases] == ["b"]
    assert dataset.faults == (
        "case a: labelsTr/a.nii.gz is not there; restore the file or take the case out",
        "case c: imagesTr/c_0000.nii.gz is not there; restore the file or take the case out",
    )


def test_two_files_of_one_case_are_named(tmp_path, save):
    images, labels = ["a_0000.nii.gz", "a_0000.nii", "b.nii", "c.nii"], ["a.nii", "b.nii", "b.nii.gz", "c.nii"]
    dataset = one_channel(tmp_path, save, images, labels)
    assert [case.name for case in dataset.cases] == ["c"]
    assert dataset.faults == (
        "case a: its image consists of a_0000.nii, a_0000.nii.gz where one file is due; take a_0000.nii.gz out",
        "case b: several labels, b.nii, b.nii.gz; keep one",
    )


def test_a_channel_too_many_is_named(tmp_path, save):
    root = nnunet(tmp_path / "d", save)
    save(root / "imagesTr/a_0002.nii.gz", np.zeros((5, 4, 3), np.float32))
    assert open_dataset(root).faults == (
        "case a: its image consists of a_0000.nii.gz, a_0001.nii.gz, a_0002.nii.gz where one file, or a_0000.nii.gz to "
        "a_0001.nii.gz, is due; take a_0002.nii.gz out",
    )


def test_a_data_set_of_another_format_says_so(decathlon):
    root = decathlon(1, training=[])
    (root / "imagesTr/a.mha").write_bytes(b"")
    with pytest.raises(
        InputError, match="no training cases found; .*; imagesTr: a.mha: MetaImage is not read; convert"
    ):
        open_dataset(root)


def test_a_case_without_label_is_kept_apart(decathlon):
    root = decathlon(3)
    text = json.loads((root / "dataset.json").read_text())
    del text["training"][0]["label"]
    (root / "dataset.json").write_text(json.dumps(text))
    dataset = open_dataset(root)
    assert dataset.cases[2].label is None
    assert [case.name for case in dataset.labelled] == ["case_00", "case_01"]


def nnunet(root, save, **changes):
    for name in ("b", "a"):
        for channel in range(2):
            save(root / f"imagesTr/{name}_{channel:04d}.nii.gz", np.full((5, 4, 3), channel, np.float32))
        save(root / f"labelsTr/{name}.nii.gz", np.zeros((5, 4, 3), np.uint8))
    text = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "organ": 1, "ignore": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(text | changes))
    return root


def test_nnunets_raw_layout_is_read_as_it_is(tmp_path, save):
    dataset = open_dataset(nnunet(tmp_path / "Dataset001_Organ", save))
    assert dataset.name == "Dataset001_Organ"
    assert dataset.structures == ("background", "organ")
    assert dataset.ignore == 2
    assert dataset.modalities == ("T1", "T2")
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert read_image(dataset.cases[0].images).array[:, 0, 0, 0].tolist() == [0, 1]


def test_a_missing_channel_is_named(tmp_path, save):
    root = nnunet(tmp_path / "d", save)
    (root / "imagesTr/a_0001.nii.gz").unlink()
    dataset = open_dataset(root)
    assert dataset.faults == ("case a: imagesTr/a_0001.nii.gz is not there; restore the file or take the case out",)
    assert [case.name for case in dataset.cases] == ["b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_ending": ".png"}, r"file_ending must be one of .*, got '.png'; convert"),
        (
            {"labels": {"background": 0, "whole": [1, 2]}},
            r"value of 'whole' must be a whole number, got \[1, 2\]; regions",
        ),
        ({"channel_names": {"1": "T1"}}, r'must number its channels "0", "1"'),
    ],
)
def test_nnunet_descriptions_that_cannot_serve(changes, message, tmp_path, save):
    with pytest.raises(InputError, match=message):
        open_dataset(nnunet(tmp_path / "d", save, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "labels must map label values to names, got None"),
        (
            {"labels": {"0": "background", "2": "far"}},
            r"must be 0 \(background\), 1, 2, ... without gaps, got \[0, 2\]",
        ),
        ({"labels": {"0": "background"}}, r"without gaps, got \[0\]"),
        ({"labels": {"0": "background", "1.5": "far"}}, "must be a whole number, got '1.5'"),
        (
            {"labels": {"0": "background", "1": "two\nlines"}},
            r"name of 1 must be one printable line, got 'two\\nlines'",
        ),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "name 'a' is given twice"),
        ({"labels": {"0": "background", "00": "a", "1": "b"}}, "value 0 is given twice"),
        ({"modality": []}, r"must map channel numbers to names"),
        ({"modality": {"0": 7}}, r"must number its channels"),
        ({"name": "a\x1b[2J"}, r"dataset.json: name must be one printable line"),
        ({"training": 3}, "training must be a list of cases, got 3"),
        ({"training": []}, "no training cases found"),
        ({"training": ["a.nii.gz"]}, r'training\[0\] must be \{"image": path'),
        ({"training": [{"image": 3}]}, r'training\[0\] must be \{"image": path'),
        (
            {"training": [{"image": "/etc/passwd.nii"}]},
            r"training\[0\].image: path leaves the data set, got '/etc/passwd.nii'",
        ),
        ({"training": [{"image": "a/../../b.nii"}]}, r"path leaves the data set"),
        ({"training": [{"image": "a.nii", "label": "../b.nii"}]}, r"training\[0\].label: path leaves the data set"),
        ({"training": [{"image": "C:\\a.nii"}]}, r"path leaves the data set"),
        ({"training": [{"image": "a\\..\\..\\b.nii"}]}, r"path leaves the data set"),
        ({"training": [{"image": "\\\\server\\a.nii"}]}, r"path leaves the data set"),
        ({"training": [{"image": "a\nb.nii"}]}, r"file name must be printable, got 'a\\nb.nii'; rename"),
        ({"training": [{"image": "a.png"}]}, r"must end in .nii.gz or .nii, got 'a.png'; convert"),
        ({"training": [{"image": ""}]}, r"file name must be printable, got ''"),
    ],
)
def test_descriptions_that_cannot_serve(changes, message, decathlon):
    with pytest.raises(InputError, match=message):
        open_dataset(decathlon(1, **changes))


def test_all_faults_of_a_description_come_at_once(decathlon):
    with pytest.raises(InputError) as caught:
        open_dataset(decathlon(1, labels={"0": "background", "2": "far"}, modality=None, name=3))
    assert len(caught.value.faults) == 3


def test_faulty_cases_are_left_out_and_their_faults_kept(decathlon):
    root = decathlon(3)
    text = json.loads((root / "dataset.json").read_text())
    text["training"][0]["image"] = "/outside.nii"
    text["training"].append(text["training"][1])
    (root / "dataset.json").write_text(json.dumps(text))
    (root / "labelsTr/case_00.nii.gz").unlink()
    dataset = open_dataset(root)
    assert [case.name for case in dataset.cases] == ["case_01"]
    assert [fault.split(";")[0] for fault in dataset.faults] == [
        "dataset.json: training[0].image: path leaves the data set, got '/outside.nii'",
        "case case_00: labelsTr/case_00.nii.gz is not there",
        "case case_01: named twice in dataset.json",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "must hold an object, got list"),
        (b'{"labels": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_files_that_hold_no_description(content, message, tmp_path):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"dataset\.json: {message}"):
        open_dataset(tmp_path)


def test_a_missing_folder_or_description_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none: no such folder; name the folder that holds dataset.json"):
        open_dataset(tmp_path / "none")
    with pytest.raises(InputError, match=r"dataset.json: no such file"):
        open_dataset(tmp_path)


def test_links_on_disk_are_followed(decathlon, tmp_path):
    root = decathlon(1)
    (root / "imagesTr").rename(tmp_path / "elsewhere")
    (root / "imagesTr").symlink_to(tmp_path / "elsewhere")
    assert open_dataset(root).faults == ()


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_a_path_that_passes_stays_inside(text):
    if path_fault(text) is None:
        path = inner_path(text)
        assert not path.is_absolute()
        assert ".." not in path.parts
        assert text.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


SOUND = {
    "name": "Task",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "organ"},
    "training": [{"image": "a.nii", "label": "b.nii"}],
    "file_ending": ".nii",
}


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from([*SOUND, "channel_names"]), json_values, max_size=2), st.booleans())
def test_any_description_is_read_or_refused(tmp_path_factory, changes, listed):
    root = tmp_path_factory.mktemp("fuzz")
    for name in ("a.nii", "b.nii"):
        (root / name).touch()
    text = {key: value for key, value in SOUND.items() if listed or key != "training"} | changes
    (root / "dataset.json").write_text(json.dumps(text))
    try:
        dataset = open_dataset(root)
    except InputError:
        return
    assert all(path.is_relative_to(root) for case in dataset.cases for path in case.files)
    assert all(name.isprintable() for name in (dataset.name, *dataset.structures, *dataset.modalities))


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
