"""What is checked of a data set before it is used, and the report of it."""

import hashlib
import io
import json
import shutil
import tarfile
from urllib.error import URLError

import nibabel as nib
import numpy as np
import pytest

from tests.fixtures import set_header
from vnet.commands.data import main
from vnet.core.errors import InputError
from vnet.data import checks
from vnet.data.checks import check_dataset, examine, seen_cases
from vnet.data.dataset import open_dataset
from vnet.data.dataset_report import find_unusual, report_dataset
from vnet.data.download import download_task, find_task
from vnet.data.facts import CaseFacts


def unusual(root):
    return [(finding.topic, finding.what) for finding in report_dataset(root, progress=False).findings]


def test_a_plain_data_set_has_nothing_unusual(decathlon):
    assert unusual(decathlon(6)) == []


def test_each_oddity_is_named(decathlon, save):
    root = decathlon(7)
    label = np.asarray(nib.load(root / "labelsTr/case_00.nii.gz").dataobj)
    save(root / "imagesTr/case_01.nii.gz", np.arange(210, dtype=np.float32).reshape(5, 6, 7), np.diag([1, 1, 2, 1]))
    save(root / "labelsTr/case_01.nii.gz", label, np.diag([1, 1, 2, 1]))
    shutil.copy(root / "imagesTr/case_02.nii.gz", root / "imagesTr/case_03.nii.gz")
    save(root / "labelsTr/case_04.nii.gz", np.zeros((5, 6, 7), np.uint8))
    save(root / "imagesTr/case_05.nii.gz", np.ones((5, 6, 7), np.float32), np.diag([-1, -1, 1, 1]))
    save(root / "labelsTr/case_05.nii.gz", np.where(label == 2, 0, label), np.diag([-1, -1, 1, 1]))
    assert sorted(unusual(root)) == [
        ("duplicate", "case_02, case_03 hold the same image; they may fall on both sides of a fold"),
        ("intensity", "case_05: channel 0 (MRI) holds one value only"),
        ("label", "empty, background only: case_04"),
        ("label", "far is absent in case_05"),
        ("orientation", "files differ: 6 RAS, 1 LPS; each is turned to RAS by its header when read"),
        ("spacing", "case_01: (2, 1, 1) mm (z, y, x); the median is (1, 1, 1)"),
    ]


def test_sizes_and_volumes_far_from_the_rest(decathlon, save):
    root = decathlon(5)
    label = np.zeros((20, 6, 7), np.uint8)
    label[:, :, :3], label[0, 0, 6] = 1, 2
    save(root / "labelsTr/case_02.nii.gz", label)
    save(root / "imagesTr/case_02.nii.gz", np.arange(840, dtype=np.float32).reshape(20, 6, 7))
    assert unusual(root) == [
        ("size", "case_02: (7, 6, 20) voxels (z, y, x); the median is (7, 6, 5)"),
        ("volume", "case_02: near is 0.36 ml; the median is 0.008"),
    ]


def test_what_is_read_in_another_way_than_usual_has_a_line(decathlon, save):
    """A label along other axes, one that went through scaled integers, a hidden file."""
    root = decathlon(4)
    label = nib.load(root / "labelsTr/case_01.nii.gz").as_reoriented(np.array([[1, -1], [0, 1], [2, 1]]))
    save(root / "labelsTr/case_01.nii.gz", np.asarray(label.dataobj), label.affine)
    values = np.asarray(nib.load(root / "labelsTr/case_02.nii.gz").dataobj)
    save(root / "labelsTr/case_02.nii.gz", values * 1.001)
    save(root / "imagesTr/._case_00.nii.gz", np.zeros((2, 2, 2), np.uint8))
    report = report_dataset(root, progress=False)
    assert report.faults == ()
    assert [(finding.topic, finding.what) for finding in report.findings] == [
        ("files", "imagesTr: 1 hidden file is passed over (._case_00.nii.gz)"),
        (
            "orientation",
            "labelsTr/case_01.nii.gz (ALS, the other RAS): stored along other axes than its image, on the same grid: "
            "turned",
        ),
        ("label", "labelsTr/case_02.nii.gz (by up to 0.002): label values are rounded to whole numbers"),
    ]


def test_an_absent_structure_is_named_once(decathlon):
    root = decathlon(3, labels={"0": "background", "1": "near", "2": "far", "3": "lost"})
    assert unusual(root) == [("label", "lost is absent in every case")]
    assert find_unusual(open_dataset(root), {}) == []


def test_check_prints_and_returns_0(decathlon, capsys):
    assert main(["check", str(decathlon(6))]) == 0
    out = capsys.readouterr().out
    assert "Task: 6 cases read, channels MRI" in out
    assert "near: in 6 cases, median 0.008 ml, from 0.008 to 0.008" in out
    assert "nothing wrong, nothing unusual" in out


@pytest.mark.parametrize(
    ("modal", "rule", "warned"),
    [
        ("MRI", "z-scores of each volume", False),
        ("T2 contrast", "z-scores of each volume", False),
        ("noNorm", "left as they are", False),
        ("CT scan", "z-scores of each volume", True),
        ("ct_soft", "z-scores of each volume", True),
        ("CBCT", "z-scores of each volume", True),
        ("Computed Tomography", "z-scores of each volume", True),
    ],
)
def test_check_prints_the_intensity_rule_of_each_channel(modal, rule, warned, decathlon, capsys):
    assert main(["check", str(decathlon(2, modal=modal))]) == 0
    out = capsys.readouterr().out
    assert f"intensities of channel 0 ({modal}): {rule}" in out
    assert (f"channel 0 is called {modal!r}: the intensity rule of CT is used for the name CT alone" in out) == warned


def test_check_prints_the_numbers_of_the_ct_rule(decathlon, capsys):
    root = decathlon(3, modal="ct")
    inside = [
        np.asarray(nib.load(root / f"imagesTr/case_0{n}.nii.gz").dataobj)[
            np.asarray(nib.load(root / f"labelsTr/case_0{n}.nii.gz").dataobj) > 0
        ].astype(float)
        for n in range(3)
    ]
    mean, std = np.mean([one.mean() for one in inside]), np.concatenate(inside).std()
    quantiles = np.sort(np.concatenate([np.quantile(one, np.arange(201) / 200) for one in inside]))
    lower, upper = np.quantile(quantiles, [0.005, 0.995])
    assert main(["check", str(root)]) == 0
    line = (
        f"intensities of channel 0 (ct): clipped to {lower:.4g} to {upper:.4g} (0.5 and 99.5 % of the foreground), "
        f"less {mean:.4g}, divided by {std:.4g}"
    )
    assert line in capsys.readouterr().out


def test_a_working_grid_beyond_memory_is_a_fault_of_its_case(decathlon, save):
    root = decathlon(5)
    wide = np.diag([60.0, 60.0, 60.0, 1.0])
    image, label = (np.asarray(nib.load(root / f"{kind}Tr/case_02.nii.gz").dataobj) for kind in ("images", "labels"))
    save(root / "imagesTr/case_02.nii.gz", np.tile(image, (8, 8, 8)), wide)
    save(root / "labelsTr/case_02.nii.gz", np.tile(label, (8, 8, 8)), wide)
    (fault,) = report_dataset(root, progress=False).faults
    assert fault.startswith(
        f"case case_02: {root / 'imagesTr/case_02.nii.gz'}: (56, 48, 40) voxels of (60.0, 60.0, 60.0) mm become "
        "(3360, 2880, 2400) at the working spacing of (1.0, 1.0, 1.0) mm (z, y, x), 346 GiB where memory holds "
    )


def test_check_names_every_fault_and_nothing_else(decathlon, save, capsys):
    root = decathlon(8)
    (root / "labelsTr/case_00.nii.gz").unlink()
    (root / "imagesTr/case_01.nii.gz").write_bytes(b"no gzip")
    save(root / "labelsTr/case_02.nii.gz", np.full((5, 6, 7), 9, np.uint8))
    with pytest.raises(InputError) as caught:
        main(["check", str(root)])
    assert caught.value.exit_code == 2
    assert [fault.split(":")[0] for fault in caught.value.faults] == [f"case case_0{number}" for number in range(3)]
    out = capsys.readouterr().out
    assert out.count("wrong") == 3
    assert "unusual" not in out


def test_check_names_ten_planted_faults_and_nothing_else(decathlon, save, capsys):
    root = decathlon(12)
    image, label = np.arange(210, dtype=np.float32).reshape(5, 6, 7), np.ones((5, 6, 7), np.uint8)
    hole = image.copy()
    hole[1, 2, 3] = np.nan
    whole = (root / "imagesTr/case_01.nii.gz").read_bytes()
    (root / "labelsTr/case_00.nii.gz").unlink()
    (root / "imagesTr/case_01.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "imagesTr/case_02.nii.gz").write_bytes(b"no gzip")
    save(root / "labelsTr/case_03.nii.gz", np.full((5, 6, 7), 9, np.uint8))
    save(root / "labelsTr/case_04.nii.gz", np.full((5, 6, 7), 0.5, np.float32))
    save(root / "imagesTr/case_05.nii.gz", hole)
    save(root / "labelsTr/case_06.nii.gz", label[:4])
    save(root / "labelsTr/case_07.nii.gz", label, np.diag([1, 1, 3, 1]))
    save(root / "imagesTr/case_08.nii.gz", np.stack([image, image], -1))
    set_header(str(root / "imagesTr/case_09.nii.gz"), srow_x=[1, 1, 0, 0], srow_y=[1, 1, 0, 0], sform_code=1)
    with pytest.raises(InputError) as caught:
        main(["check", str(root)])
    wanted = ["is not there", "ended before", "Not a gzipped", "hold 9", "not whole", "NaN", "shape", "affine differs"]
    wanted += ["2 channels where dataset.json names 1", "singular"]
    faults = caught.value.faults
    assert [fault.split(":")[0] for fault in faults] == [f"case case_{number:02d}" for number in range(10)]
    for fault, words in zip(faults, wanted, strict=True):
        assert words in fault
    assert capsys.readouterr().out.count("wrong") == 10


def test_check_names_a_splits_file_that_does_not_fit(decathlon):
    root = decathlon(6)
    (root / "splits.json").write_text('{"folds": [{"train": ["case_00"], "val": ["nobody"]}]}')
    with pytest.raises(InputError, match="fold 0 val names 'nobody', not a labelled case"):
        main(["check", str(root)])


def test_phantoms_are_made_as_wished(tmp_path, capsys):
    words = "--count 2 --seed 3 --size 12 14 16 --spacing_mm 2 1 1 --organs 3 --no_vessels --modality CT --exact"
    assert main(["phantoms", str(tmp_path / "made"), *words.split(), "--orientations", "LPS"]) == 0
    assert "2 phantoms in" in capsys.readouterr().out
    report = report_dataset(tmp_path / "made", progress=False)
    assert report.dataset.structures == ("background", "organ 01", "organ 02", "organ 03")
    assert report.dataset.modalities == ("CT",)
    for fact in report.facts.values():
        assert fact.shape == (12, 14, 16)
        assert fact.spacing_mm == pytest.approx((2, 1, 1))
        assert fact.orientation == "LPS"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phantoms"], "command line: .*OUTPUT"),
        (["phantoms", "x", "--modality", "PET"], "command line: .*--modality"),
        (["phantoms", "x", "--organs", "0"], "organs must lie in 1 to 200"),
        (["check", "nowhere"], "nowhere: no such folder"),
        (["download", "Task99_Nothing", "x"], "no Decathlon task 'Task99_Nothing'; name one of Task01_BrainTumour"),
        (["destroy"], "command line: .*destroy"),
    ],
)
def test_words_that_cannot_be_followed(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["Task04_Hippocampus", "4", "04", "hippocampus", "Task4", "task04"])
def test_a_task_is_found_by_name_or_number(task):
    assert find_task(task, ["Task01_BrainTumour", "Task04_Hippocampus"]) == "Task04_Hippocampus"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A task's archive on disk in the place of the one on the network."""
    from monai.apps.datasets import DecathlonDataset

    def serve(members):
        path = tmp_path / "served.tar"
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setattr(DecathlonDataset, "resource", {"Task04_Hippocampus": path.as_uri()})
        monkeypatch.setattr(DecathlonDataset, "md5", {"Task04_Hippocampus": digest})
        return path

    return serve


def test_a_task_is_fetched_and_unpacked(archive, tmp_path, capsys):
    archive({"Task04_Hippocampus/dataset.json": b"{}", "Task04_Hippocampus/imagesTr/a.nii.gz": b"x"})
    folder = download_task("4", tmp_path / "data")
    assert folder == tmp_path / "data/Task04_Hippocampus"
    assert (folder / "imagesTr/a.nii.gz").read_bytes() == b"x"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Task04_Hippocampus"]
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="is there already"):
        download_task("4", tmp_path / "data")


def test_a_damaged_archive_leaves_nothing(archive, tmp_path, capsys):
    path = archive({"Task04_Hippocampus/dataset.json": b"{}"})
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match=r"cannot be fetched \(md5 hash check .* failed.*check the network"):
        download_task("4", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert capsys.readouterr().err == ""


def test_an_archive_that_leaves_its_folder_is_refused(archive, tmp_path):
    archive({"../../../escaped.txt": b"x", "Task04_Hippocampus/dataset.json": b"{}"})
    with pytest.raises(InputError, match="cannot be fetched"):
        download_task("4", tmp_path / "data")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_no_network_is_one_line(tmp_path, monkeypatch, capsys):
    def silent(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr("monai.apps.utils.download_url", silent)
    with pytest.raises(InputError, match=r"Name or service not known.*; check the network") as caught:
        download_task("4", tmp_path / "data")
    assert len(caught.value.faults) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.decathlon
def test_the_hippocampus_data_have_nothing_wrong_or_unusual(hippocampus):
    report = report_dataset(hippocampus, progress=False)
    assert report.faults == ()
    assert report.findings == ()
    assert len(report.facts) == 208


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
