"""Downloaded data sets: complete or not, as folders and as archives."""

import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from lmfn import cli
from lmfn.data import DataError, find_pairs, prepare
from lmfn.data.downloads import DATASETS, PrepareReport

SIZE = (8, 10)
SMALL = {
    "gopro": {"pairs": {"train": 4, "test": 2}, "sequences": {"train": ("GOPR1", "GOPR2"), "test": ("GOPR3",)}},
    "hide": {"pairs": {"train": 2, "test": 2}},
    "realblur-j": {"pairs": {"train": 2, "test": 1}},
    "realblur-r": {"pairs": {"train": 1, "test": 1}},
    "rsblur": {"pairs": {"train": 2, "val": 1, "test": 1}},
    "koehler": {"pairs": {"": 2}},
    "reds": {"pairs": {"train": 200, "val": 100}, "sequences": {"train": ("000", "001"), "val": ("000",)}},
}
GOPRO = [
    f"{split}/{sequence}/{kind}/00000{n}.png"
    for split, sequence in (("train", "GOPR1"), ("train", "GOPR2"), ("test", "GOPR3"))
    for kind in ("blur", "blur_gamma", "sharp")
    for n in (1, 2)
]
REALBLUR = [f"J/scene00{s}/{kind}/{kind}_{s}.png" for s in (1, 2, 3) for kind in ("blur", "gt")]
FILES = {
    "gopro": GOPRO,
    "hide": [
        *("train/1.png", "train/2.png", "test/test-close-ups/3.png", "test/test-long-shot/4.png"),
        *(f"GT/{n}.png" for n in (1, 2, 3, 4)),
    ],
    "realblur-j": REALBLUR,
    "rsblur": [f"RSBlur/0001/00000{s}/{f}.png" for s in (1, 2, 3, 4) for f in ("real_blur/real_blur", "gt/gt_sharp")],
    "koehler": [f"Blurry1_{k}.png" for k in (1, 3)]
    + [f"Image1/Kernel{k}/GroundTruth1_{k}_{n}.png" for k in (1, 3) for n in (1, 2, 3)],
    "reds": [
        f"{split}_{kind}/{sequence}/{n:08d}.png"
        for split, sequence in (("train", "000"), ("train", "001"), ("val", "000"))
        for kind in ("blur", "sharp")
        for n in range(100)
    ],
}


@pytest.fixture(autouse=True)
def _small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, facts in SMALL.items():
        size = SIZE if DATASETS[name].size else None
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], size=size, **facts))


@pytest.fixture
def make(save: Callable, tmp_path: Path) -> Callable[[str], Path]:
    """The tree of a data set, inside the single folder of its archive."""

    def write(name: str) -> Path:
        root = tmp_path / "download" / "Set"
        first = root / FILES[name][0]
        save(first, *SIZE)
        for file in FILES[name][1:]:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(first, root / file)
        if name == "realblur-j":
            line = "J/scene00{0}/gt/gt_{0}.png J/scene00{0}/blur/blur_{0}.png\n"
            (root / "RealBlur_J_train_list.txt").write_text(line.format(1) + line.format(3))
            (root / "RealBlur_J_test_list.txt").write_text(line.format(2))
        if name == "rsblur":
            line = "RSBlur/0001/00000{0}/gt/gt_sharp.png RSBlur/0001/00000{0}/real_blur/real_blur.png\n"
            for split, shots in (("train", (1, 2)), ("val", (3,)), ("test", (4,))):
                (root / f"RSBlur_real_{split}.txt").write_text("".join(map(line.format, shots)))
        return root

    return write


def pack(folder: Path, kind: str) -> Path:
    return Path(shutil.make_archive(str(folder.parent.parent / "archive"), kind, folder.parent))


def all_pairs(root: Path, **options: str) -> list[tuple[str, Path, Path]]:
    return sorted((pair.name, pair.blurred, pair.sharp) for pair in find_pairs(root, **options))


@pytest.mark.parametrize("name", FILES)
def test_a_whole_set_gets_an_index(name: str, make: Callable) -> None:
    root = make(name)
    before = None if name in ("realblur-j", "rsblur") else all_pairs(root)
    report = prepare(name, root.parent)
    assert report.ok, report.text()
    assert (report.root, report.index) == (root, root / f"lmfn-index-{name}.csv")
    for split, count in SMALL[name]["pairs"].items():
        assert len(find_pairs(root, split=split or None)) == count
        assert any(split in line and f"{count} of {count} pairs" in line for line in report.found)
    if before is not None:
        assert all_pairs(root) == before
    assert f"index: {report.index}" in report.text()
    assert prepare(name, root) == report  # again, with the index present


def test_gopro_s_variants_are_both_listed(make: Callable) -> None:
    root = make("gopro")
    assert prepare("gopro", root).ok
    for variant in ("blur", "blur_gamma"):
        found = find_pairs(root, split="test", variant=variant)
        assert found.layout == f"GoPro ({variant})"
        assert [pair.blurred.parent.name for pair in found] == [variant, variant]


def problems(report: PrepareReport) -> str:
    assert not report.ok
    assert report.index is None
    assert "no index was written" in report.text()
    assert not list(report.root.glob("lmfn-index-*")) if report.root.is_dir() else True
    return "\n".join(report.problems)


def test_what_is_missing_is_said(make: Callable) -> None:
    root = make("gopro")
    shutil.rmtree(root / "train" / "GOPR2")
    assert problems(prepare("gopro", root)).splitlines() == [
        "train, blur: 2 pairs too few",
        "train, blur: there is no sequence GOPR2",
        "train, blur_gamma: 2 pairs too few",
        "train, blur_gamma: there is no sequence GOPR2",
    ]
    shutil.rmtree(root / "train")
    report = prepare("gopro", root)  # only one split: reported, and no problem
    assert report.ok
    assert report.found[0] == "train, blur: missing (4 pairs)"
    assert len(find_pairs(root)) == 2


def test_images_that_do_not_fit_are_named(make: Callable, save: Callable) -> None:
    root = make("gopro")
    save(root / "test/GOPR3/sharp/000001.png", 8, 11)
    half = root / "test/GOPR3/blur/000002.png"
    half.write_bytes(half.read_bytes()[:-20])
    text = problems(prepare("gopro", root))
    assert "sharp/000001.png is 11x8, not 10x8" in text
    assert f"{half}: the file is cut short" in text
    (root / "test/GOPR3/sharp/000002.png").unlink()
    with pytest.raises(DataError, match=r"blur/000002\.png has no sharp partner"):
        prepare("gopro", root)


def test_a_short_sequence_of_reds_is_named(make: Callable) -> None:
    root = make("reds")
    for kind in ("blur", "sharp"):
        (root / f"train_{kind}" / "001" / "00000042.png").unlink()
    assert problems(prepare("reds", root)).splitlines() == [
        "train: 1 pairs too few",
        "train: sequence 001 has 99 of 100 pairs",
    ]


def test_realblur_needs_its_lists(make: Callable) -> None:
    root = make("realblur-j")
    (root / "RealBlur_R_test_list.txt").write_text("nothing of J's\n")
    assert prepare("realblur-j", root).ok
    with pytest.raises(DataError, match=r"RealBlur_R_test_list\.txt, line 1: expected two paths"):
        prepare("realblur-r", root)
    (root / "RealBlur_R_test_list.txt").unlink()
    report = prepare("realblur-r", root)
    assert not report.ok
    assert "no part of realblur-r was found in" in report.text()
    assert "RealBlur_R_{train,test}_list.txt" in report.text()


def test_other_sets_and_names_are_refused(make: Callable, tmp_path: Path) -> None:
    root = make("hide")
    with pytest.raises(DataError, match=r"has the layout of HIDE, not that of GoPro"):
        prepare("gopro", root)
    with pytest.raises(DataError, match="unknown data set 'imagenet'; there are gopro, hide"):
        prepare("imagenet", root)
    with pytest.raises(DataError, match=r"there is no folder or archive .*nowhere"):
        prepare("hide", tmp_path / "nowhere")
    with pytest.raises(DataError, match="only archives are unpacked"):
        prepare("hide", root, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("name", ["gopro", "realblur-j", "rsblur"])
def test_archives_are_looked_into_and_unpacked(name: str, kind: str, make: Callable, tmp_path: Path) -> None:
    archive = pack(make(name), kind)
    report = prepare(name, archive)
    assert report.ok
    assert (report.root, report.index) == (archive, None)
    assert "-o FOLDER unpacks it" in report.text()
    out = tmp_path / "data" / "set"
    report = prepare(name, archive, out)
    assert report.index == out / "Set" / f"lmfn-index-{name}.csv"
    assert len(find_pairs(out / "Set", split="test")) == SMALL[name]["pairs"]["test"]
    assert os.listdir(out.parent) == ["set"]
    with pytest.raises(DataError, match="is not an empty folder"):
        prepare(name, archive, out)


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_an_archive_that_is_cut_short_leaves_nothing(kind: str, make: Callable, tmp_path: Path) -> None:
    archive = pack(make("gopro"), kind)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) * 2 // 3])
    for out in (None, tmp_path / "out"):
        with pytest.raises(DataError, match=rf"{archive.name} is .*cut short.*; download it again"):
            prepare("gopro", archive, out)
    assert not (tmp_path / "out").exists()


def test_an_archive_with_a_broken_or_missing_file(make: Callable, tmp_path: Path) -> None:
    root = make("gopro")
    archive = pack(root, "zip")
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as zipped:
        entry = next(e for e in zipped.infolist() if e.filename.endswith("blur/000001.png"))
    data[entry.header_offset + 60 + len(entry.filename)] ^= 255
    archive.write_bytes(data)
    for out in (None, tmp_path / "out"):
        with pytest.raises(DataError, match=r"archive\.zip is cut short or broken"):
            prepare("gopro", archive, out)
    shutil.rmtree(root / "test" / "GOPR3")
    report = prepare("gopro", pack(root, "tar"), tmp_path / "out")
    assert "test, blur: missing (2 pairs)" in report.found
    shutil.rmtree(root / "train" / "GOPR2")
    report = prepare("gopro", pack(root, "tar"), tmp_path / "other")
    assert "train, blur: there is no sequence GOPR2" in report.problems
    assert not (tmp_path / "other").exists()


def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    for archive, member in (("a.tar", "../evil.png"), ("b.tar", "/evil.png")):
        with tarfile.open(tmp_path / archive, "w") as tarred:
            tarred.addfile(tarfile.TarInfo(member))
        with pytest.raises(DataError, match=r"evil\.png, a path outside"):
            prepare("gopro", tmp_path / archive, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "b.tar"]
    (tmp_path / "set.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"set\.rar is neither a folder nor a zip or tar archive"):
        prepare("gopro", tmp_path / "set.rar")


def test_the_command_line_knows_every_set(make: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_args(get_type_hints(cli.Prepare)["name"]) == tuple(DATASETS)
    root = make("hide")
    assert cli.main(["data", "prepare", "hide", str(root)]) == 0
    assert "train: 2 of 2 pairs" in capsys.readouterr().out
    (root / "GT" / "4.png").unlink()
    (root / "lmfn-index-hide.csv").unlink()
    assert cli.main(["data", "prepare", "hide", str(root)]) == 1
    assert "4.png has no sharp partner" in capsys.readouterr().err
