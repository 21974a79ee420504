"""What is refused before a training, and what is kept of a check."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from vnet.core.errors import InputError
from vnet.data import checks
from vnet.data.checks import check_dataset, examine, seen_cases
from vnet.data.dataset import open_dataset
from vnet.data.facts import CaseFacts


def read(path):
    return np.asarray(nib.load(path).dataobj)


def faults_of(root):
    with pytest.raises(InputError) as caught:
        check_dataset(open_dataset(root), None, progress=False)
    return caught.value.faults


def test_facts_are_those_of_the_files(decathlon):
    root = decathlon(2)
    checked = check_dataset(open_dataset(root), None, progress=False)
    fact = checked.facts["case_00"]
    assert fact.shape == (7, 6, 5)
    assert fact.spacing_mm == (1, 1, 1)
    assert fact.orientation == "RAS"
    assert fact.labels == {0: 5 * 6 * 7 - 16, 1: 8, 2: 8}
    inside = read(root / "imagesTr/case_00.nii.gz")[read(root / "labelsTr/case_00.nii.gz") > 0].astype(float)
    assert fact.foreground[0].mean == pytest.approx(inside.mean())
    assert fact.foreground[0].std == pytest.approx(inside.std())
    assert fact.foreground[0].quantiles[::100] == pytest.approx(np.quantile(inside, [0, 0.5, 1]), rel=1e-5)
    assert CaseFacts.from_dict(json.loads(json.dumps(fact.to_dict()))) == fact


def break_shape(root, save):
    save(root / "labelsTr/case_01.nii.gz", np.zeros((5, 6, 8), np.uint8))


def break_affine(root, save):
    save(root / "labelsTr/case_01.nii.gz", read(root / "labelsTr/case_01.nii.gz"), np.diag([1, 1, 2, 1]))


def break_voxels(root, save):
    voxels = read(root / "imagesTr/case_01.nii.gz").copy()
    voxels[0, 0, 0] = np.nan
    save(root / "imagesTr/case_01.nii.gz", voxels)


def break_value(root, save):
    label = read(root / "labelsTr/case_01.nii.gz").copy()
    label[0, 0, :2] = 7
    save(root / "labelsTr/case_01.nii.gz", label)


def break_whole(root, save):
    label = read(root / "labelsTr/case_01.nii.gz").astype(np.float32)
    label[0, 0, 0] = 0.5
    save(root / "labelsTr/case_01.nii.gz", label)


def break_channels(root, save):
    save(root / "imagesTr/case_01.nii.gz", np.ones((5, 6, 7, 2), np.float32))


def break_gzip(root, save):
    path = root / "imagesTr/case_01.nii.gz"
    path.write_bytes(path.read_bytes()[:-50])


def break_file(root, save):
    (root / "labelsTr/case_01.nii.gz").unlink()


FAULTS = [
    (
        break_shape,
        r"case case_01: .*labelsTr/case_01.nii.gz: shape \(5, 6, 8\) differs from \(5, 6, 7\) of its image; resample",
    ),
    (break_affine, r"case case_01: .*: affine differs from that of its image, corners lie 7 mm apart"),
    (break_voxels, r"case case_01: .*imagesTr/case_01.nii.gz: 1 voxels are NaN or infinite; replace"),
    (break_value, r"case case_01: 2 voxels of the label hold 7, outside the classes 0 to 2 of dataset.json; name"),
    (break_whole, r"case case_01: .*: 1 voxels hold label values that are not whole; resample"),
    (
        break_channels,
        r"case case_01: the image is 4-D where 3-D is due: 2 channels where dataset.json names 1 \(MRI\); correct",
    ),
    (break_gzip, r"case case_01: .*imagesTr/case_01.nii.gz: truncated or damaged gzip"),
    (break_file, r"case case_01: labelsTr/case_01.nii.gz is not there; restore"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS, ids=[damage.__name__ for damage, _ in FAULTS])
def test_each_fault_is_named_alone(damage, message, decathlon, save):
    root = decathlon(3)
    damage(root, save)
    (fault,) = faults_of(root)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fault)


def test_all_faults_come_at_once(decathlon, save):
    root = decathlon(3)
    break_voxels(root, save)
    break_whole(root, save)
    save(root / "labelsTr/case_02.nii.gz", np.zeros((5, 6, 8), np.uint8))
    (root / "labelsTr/case_00.nii.gz").unlink()
    faults = faults_of(root)
    assert [fault.split(":")[0] for fault in faults] == ["case case_00", "case case_01", "case case_01", "case case_02"]


def test_a_data_set_without_foreground_is_refused(decathlon, save):
    root = decathlon(2)
    for name in ("case_00", "case_01"):
        save(root / f"labelsTr/{name}.nii.gz", np.zeros((5, 6, 7), np.uint8))
    assert faults_of(root) == [f"{root}: no case holds a labelled structure; add labels with foreground"]


def test_an_ignore_label_is_one_of_the_values(decathlon, save):
    root = decathlon(2, labels={"0": "background", "1": "near", "2": "far", "7": "ignore"})
    break_value(root, save)
    assert check_dataset(open_dataset(root), None, progress=False).facts["case_01"].labels[7] == 2


def test_facts_are_kept_and_files_are_not_read_again(decathlon, tmp_path, monkeypatch):
    dataset = open_dataset(decathlon(3))
    first = check_dataset(dataset, tmp_path / "cache", progress=False)
    monkeypatch.setattr(checks, "read_case", None)
    assert check_dataset(dataset, tmp_path / "cache", progress=False) == first


def test_only_a_changed_case_is_read_again(decathlon, save, tmp_path, monkeypatch):
    root = decathlon(3)
    dataset = open_dataset(root)
    first = check_dataset(dataset, tmp_path / "cache", progress=False)
    asked, original = [], checks.read_case
    monkeypatch.setattr(checks, "read_case", lambda case: asked.append(case.name) or original(case))
    save(root / "imagesTr/case_02.nii.gz", np.ones((5, 6, 7), np.float32))
    second = check_dataset(dataset, tmp_path / "cache", progress=False)
    assert asked == ["case_02"]
    assert second.facts["case_02"].constant == (0,)
    assert second.content_hash != first.content_hash


def test_kept_facts_do_not_hide_a_new_fault(decathlon, save, tmp_path):
    root = decathlon(3)
    check_dataset(open_dataset(root), tmp_path / "cache", progress=False)
    break_voxels(root, save)
    for _ in range(2):
        with pytest.raises(InputError, match="1 voxels are NaN"):
            check_dataset(open_dataset(root), tmp_path / "cache", progress=False)
    text = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(text | {"labels": {"0": "background", "1": "near"}}))
    with pytest.raises(InputError, match="case case_00: 8 voxels of the label hold 2, outside the classes 0 to 1"):
        check_dataset(open_dataset(root), tmp_path / "cache", progress=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 3}', '{"format": 3, "cases": {"case_00": {}}}'])
def test_a_damaged_file_of_facts_is_written_anew(content, decathlon, tmp_path):
    dataset = open_dataset(decathlon(2))
    first = check_dataset(dataset, tmp_path / "cache", progress=False)
    (place,) = (tmp_path / "cache").iterdir()
    place.write_text(content)
    assert check_dataset(dataset, tmp_path / "cache", progress=False) == first
    assert json.loads(place.read_text())["cases"].keys() == {"case_00", "case_01"}


def test_the_content_hash_is_of_content(decathlon, tmp_path, save):
    root = decathlon(3)

    def content(folder):
        return check_dataset(open_dataset(folder), None, progress=False).content_hash

    before = content(root)
    moved = shutil.copytree(root, tmp_path / "moved")
    for folder in ("imagesTr", "labelsTr"):
        path = moved / folder / "case_01.nii.gz"
        turned = nib.load(path).as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
        save(path, np.asarray(turned.dataobj), turned.affine)
    assert content(moved) == before
    save(moved / "imagesTr/case_01.nii.gz", np.asarray(turned.dataobj) + np.float32(1), turned.affine)
    assert content(moved) != before
    (root / "splits.json").write_text('{"folds": [{"train": ["case_00"], "val": ["case_01"]}]}')
    assert content(root) != before


def test_what_can_be_read_is_described_beside_the_faults(decathlon, save):
    root = decathlon(3)
    break_voxels(root, save)
    checked = examine(open_dataset(root), None, progress=False)
    assert list(checked.facts) == ["case_00", "case_02"]
    assert len(checked.faults) == 1


def test_copies_of_cases_are_known_again_by_their_content(decathlon, tmp_path, save):
    """Renamed, turned and packed otherwise; a case whose label alone changed was seen too."""
    root = decathlon(3)
    facts = examine(open_dataset(root), progress=False).facts
    trained = [facts[name].image_hash for name in ("case_00", "case_01")]
    assert seen_cases(facts, trained) == ["case_00", "case_01"]
    other = shutil.copytree(root, tmp_path / "other")
    for folder in ("imagesTr", "labelsTr"):
        turned = nib.load(other / folder / "case_01.nii.gz").as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
        save(other / folder / "case_01.nii.gz", np.asarray(turned.dataobj), turned.affine)
        (other / folder / "case_00.nii.gz").rename(other / folder / "case_09.nii.gz")
        (other / folder / "case_01.nii.gz").rename(other / folder / "case_08.nii.gz")
    text = (other / "dataset.json").read_text().replace("case_00", "case_09").replace("case_01", "case_08")
    (other / "dataset.json").write_text(text)
    assert seen_cases(examine(open_dataset(other), progress=False).facts, trained) == ["case_08", "case_09"]
    assert seen_cases(facts, []) == []


def test_large_volumes_are_read_one_after_the_other(decathlon, monkeypatch):
    cases = list(open_dataset(decathlon(3)).cases)
    voxels = 5 * 6 * 7
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for fit, expected in ((0.5, 1), (1, 1), (2.5, 2), (100, 4)):
        limit = int(2 * fit * checks.READING_BYTES * voxels)
        monkeypatch.setattr(checks, "memory_limit_bytes", lambda limit=limit: limit)
        assert checks.readers(cases) == expected


@pytest.mark.decathlon
def test_the_hippocampus_data_pass(hippocampus, tmp_path):
    checked = check_dataset(open_dataset(hippocampus), tmp_path, progress=False)
    assert len(checked.facts) == 208
    assert {fact.orientation for fact in checked.facts.values()} == {"RAS"}
    assert all(set(fact.labels) == {0, 1, 2} for fact in checked.facts.values())
