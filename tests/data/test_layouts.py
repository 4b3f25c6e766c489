"""Layouts of data sets: each is recognised automatically, each fault is named."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lmfn.data import DataError, UnknownLayoutError, find_pairs
from lmfn.data.layouts import index_name, write_index

INDEX = index_name("mine")


def trees() -> dict[str, tuple[str, list[str]]]:
    """By name: the layout to be recognised, and the files of a tree."""
    sequences = [("train", "GOPR0372_07_00"), ("train", "GOPR0374_11_00"), ("test", "GOPR0384_11_00")]
    gopro = [
        f"{split}/{sequence}/{kind}/{n:06d}.png"
        for split, sequence in sequences
        for kind in ("blur", "blur_gamma", "sharp")
        for n in (47, 48)
    ]
    hide = ["train/1a.png", "train/2a.png", "test/test-close-ups/3a.png", "test/test-long-shot/4a.png"]
    flat = [("blur", "sharp"), ("input", "target"), ("lq", "gt"), ("LQ", "GT"), ("blur_crops", "sharp_crops")]
    made = {
        "gopro": ("GoPro (blur)", gopro),
        "hide": ("HIDE", [*hide, *(f"GT/{n}a.png" for n in range(1, 5))]),
        "realblur": (
            "RealBlur",
            [f"scene00{s}/{kind}/{kind}_{k}.png" for s in (1, 2) for kind in ("blur", "gt") for k in (1, 2, 10)],
        ),
        "rsblur": (
            "RSBlur",
            [
                f"RSBlur/000{scene}/00000{shot}/{file}.png"
                for scene in (1, 2)
                for shot in (1, 2)
                for file in ("real_blur/real_blur", "gt/gt_sharp", "avg65_img/avg_blur")
            ],
        ),
        "reds": (
            "REDS",
            [
                f"{split}_{k}/00{s}/0000000{s}.png"
                for split in ("train", "val")
                for k in ("blur", "sharp")
                for s in (0, 1)
            ],
        ),
    }
    for blurred, sharp in flat:
        both = [f"{blurred}/a/1.png", f"{blurred}/b.jpg", f"{sharp}/a/1.jpg", f"{sharp}/b.png"]
        made[f"flat {blurred}"] = ("flat pairs", both)
        split = [f"{part}/{file}" for part in ("train", "test") for file in both]
        made[f"flat {blurred} with splits"] = ("flat pairs", split)
    return made


TREES = trees()


def plant(root: Path, files: list[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def found(root: Path, **options: str) -> list[tuple[str, str, str]]:
    return [
        (p.name, p.blurred.relative_to(root).as_posix(), p.sharp.relative_to(root).as_posix())
        for p in find_pairs(root, **options)
    ]


@pytest.mark.parametrize("tree", TREES)
def test_every_layout_is_recognised(tree: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout, files = TREES[tree]
    with caplog.at_level(logging.INFO, "lmfn"):
        pairs = find_pairs(plant(tmp_path, files))
    assert pairs.layout == layout
    assert len(pairs) == len(files) // (3 if tree in ("gopro", "rsblur") else 2)
    assert len({p.name for p in pairs}) == len(pairs)
    assert pairs.split is None
    [line] = caplog.messages
    assert layout in line
    assert str(len(pairs)) in line
    assert str(tmp_path) in line


def test_gopro_split_and_variant(tmp_path: Path) -> None:
    plant(tmp_path, TREES["gopro"][1])
    names = ["GOPR0384_11_00/000047", "GOPR0384_11_00/000048"]
    for variant in ("blur", "blur_gamma"):
        pairs = find_pairs(tmp_path, split="test", variant=variant)
        assert (pairs.layout, pairs.split) == (f"GoPro ({variant})", "test")
        assert [p.name for p in pairs] == names
        test = tmp_path / "test" / "GOPR0384_11_00"
        assert [p.blurred for p in pairs] == [test / variant / "000047.png", test / variant / "000048.png"]
        assert [p.sharp for p in pairs] == [test / "sharp" / "000047.png", test / "sharp" / "000048.png"]
    assert len(find_pairs(tmp_path, split="train")) == 4
    # The folder of one split is a root, too, and has no splits to choose from.
    assert [p.name for p in find_pairs(tmp_path / "test", split="train")] == names


def test_hide_matches_the_sharp_by_name(tmp_path: Path) -> None:
    plant(tmp_path, TREES["hide"][1])
    assert found(tmp_path, split="test") == [
        ("3a", "test/test-close-ups/3a.png", "GT/3a.png"),
        ("4a", "test/test-long-shot/4a.png", "GT/4a.png"),
    ]
    assert len(find_pairs(tmp_path, split="train")) == 2


def test_realblur_scenes(tmp_path: Path) -> None:
    plant(tmp_path, TREES["realblur"][1])
    assert set(found(tmp_path)) >= {
        ("scene001/1", "scene001/blur/blur_1.png", "scene001/gt/gt_1.png"),
        ("scene002/10", "scene002/blur/blur_10.png", "scene002/gt/gt_10.png"),
    }


def test_rsblur_lists_and_shots(tmp_path: Path) -> None:
    plant(tmp_path, TREES["rsblur"][1])
    line = "RSBlur/000{0}/00000{1}/gt/gt_sharp.png RSBlur/000{0}/00000{1}/real_blur/real_blur.png\n"
    pair = ("0001/000002", *(f"RSBlur/0001/000002/{file}.png" for file in ("real_blur/real_blur", "gt/gt_sharp")))
    assert pair in found(tmp_path)
    assert len(find_pairs(tmp_path / "RSBlur")) == len(find_pairs(tmp_path)) == 4
    (tmp_path / "RSBlur_real_train.txt").write_text(line.format(1, 1) + line.format(2, 1))
    (tmp_path / "RSBlur_real_val.txt").write_text(line.format(1, 2))
    (tmp_path / "RSBlur_real_test.txt").write_text(line.format(2, 2))
    (tmp_path / "RSBlur_real_test_saturation.txt").write_text(line.format(2, 2))
    assert found(tmp_path, split="val") == [pair]
    assert find_pairs(tmp_path, split="train").layout == find_pairs(tmp_path).layout == "RSBlur"
    assert find_pairs(tmp_path / "RSBlur_real_test_saturation.txt").layout == "RSBlur"
    assert [p.name for p in find_pairs(tmp_path)] == [
        *("test/0002/000002", "train/0001/000001", "train/0002/000001", "val/0001/000002"),
    ]
    (tmp_path / "RSBlur/0002/000002/gt/gt_sharp.png").unlink()
    with pytest.raises(DataError, match=r"RSBlur_real_test.txt, line 1: there is no file .*000002/gt/gt_sharp.png"):
        find_pairs(tmp_path, split="test")


def test_realblur_lists(tmp_path: Path) -> None:
    plant(tmp_path, [f"RealBlur-J/{file}" for file in TREES["realblur"][1]])
    line = "RealBlur-J/scene00{0}/gt/gt_{1}.png RealBlur-J/scene00{0}/blur/blur_{1}.png\n"
    (tmp_path / "RealBlur_J_train_list.txt").write_text(line.format(1, 1) + line.format(1, 10))
    (tmp_path / "RealBlur_J_test_list.txt").write_text(line.format(2, 2) + "\n")
    expected = [("scene002/2", "RealBlur-J/scene002/blur/blur_2.png", "RealBlur-J/scene002/gt/gt_2.png")]
    assert found(tmp_path, split="test") == expected
    [pair] = find_pairs(tmp_path / "RealBlur_J_test_list.txt")
    assert pair.name == "scene002/2"
    assert [p.name for p in find_pairs(tmp_path)] == ["test/scene002/2", "train/scene001/1", "train/scene001/10"]

    (tmp_path / "RealBlur_R_test_list.txt").write_text(line.format(2, 2))
    with pytest.raises(DataError, match=r"RealBlur_J_test_list.txt and RealBlur_R_test_list.txt"):
        find_pairs(tmp_path)
    (tmp_path / "bad_list.txt").write_text("one two three\n")
    with pytest.raises(DataError, match=r"bad_list.txt, line 1: expected two paths"):
        find_pairs(tmp_path / "bad_list.txt")
    (tmp_path / "bad_list.txt").write_text(line.format(1, 1) + line.format(3, 1))
    with pytest.raises(DataError, match=r"line 2: there is no file .*scene003/gt/gt_1.png"):
        find_pairs(tmp_path / "bad_list.txt")
    (tmp_path / "bad_list.txt").write_text(line.format(1, 1) * 2)
    with pytest.raises(DataError, match=r"lists scene001/1 2 times"):
        find_pairs(tmp_path / "bad_list.txt")
    (tmp_path / "bad_list.txt").write_text("")
    with pytest.raises(DataError, match="lists no pairs"):
        find_pairs(tmp_path / "bad_list.txt")


def test_reds_has_a_val_split_in_place_of_test(tmp_path: Path) -> None:
    plant(tmp_path, TREES["reds"][1])
    pairs = find_pairs(tmp_path, split="test")
    assert (pairs.split, [p.name for p in pairs]) == ("val", ["000/00000000", "001/00000001"])
    assert pairs.pairs[1].sharp == tmp_path / "val_sharp/001/00000001.png"


def test_koehlers_shots_have_frames_and_one_gap_is_known(tmp_path: Path) -> None:
    shots = {(1, 2): range(1, 13), (1, 3): [*range(1, 30), 31, 32], (1, 10): range(1, 4)}
    files = [f"Image{i}/Kernel{k}/GroundTruth{i}_{k}_{n}.png" for (i, k), numbers in shots.items() for n in numbers]
    plant(tmp_path, [*files, *(f"Blurry{i}_{k}.png" for i, k in shots)])
    pairs = find_pairs(tmp_path, split="test")
    assert (pairs.layout, pairs.split) == ("Koehler", None)
    assert [p.name for p in pairs] == ["1_2", "1_3", "1_10"]
    for pair, ((i, k), numbers) in zip(pairs, shots.items(), strict=True):
        folder = tmp_path / f"Image{i}" / f"Kernel{k}"
        assert pair.blurred == tmp_path / f"Blurry{i}_{k}.png"
        assert pair.frames == tuple(folder / f"GroundTruth{i}_{k}_{n}.png" for n in numbers)
        assert pair.sharp == pair.frames[len(pair.frames) // 2]
    # The frame is left out where it is there, too.
    (tmp_path / "Image1" / "Kernel3" / "GroundTruth1_3_30.png").touch()
    assert find_pairs(tmp_path) == pairs


@pytest.mark.parametrize("tree", TREES)
def test_an_index_gives_the_same_pairs_again(tree: str, tmp_path: Path) -> None:
    plant(tmp_path, TREES[tree][1])
    splits = {"gopro": ("train", "test"), "hide": ("train", "test"), "reds": ("train", "val")}
    by_split = tree in splits or "splits" in tree
    sets = [find_pairs(tmp_path, split=s) for s in splits.get(tree, ("train", "test"))] if by_split else []
    sets = sets or [find_pairs(tmp_path)]
    write_index(tmp_path / INDEX, sets)
    for made in sets:
        again = find_pairs(tmp_path, split=made.split)
        assert again == made
        assert find_pairs(tmp_path / INDEX, split=made.split).pairs == made.pairs
    assert len(find_pairs(tmp_path)) == sum(map(len, sets))


def test_an_index_of_both_variants_and_of_frames(tmp_path: Path) -> None:
    plant(tmp_path, TREES["gopro"][1])
    variants = [find_pairs(tmp_path, split="test", variant=variant) for variant in ("blur", "blur_gamma")]
    write_index(tmp_path / INDEX, variants)
    assert [find_pairs(tmp_path, split="test", variant=variant) for variant in ("blur", "blur_gamma")] == variants
    shots = tmp_path / "shots"
    plant(shots, ["Blurry4_12.png", *(f"Image4/Kernel12/GroundTruth4_12_{n}.png" for n in range(1, 12))])
    made = find_pairs(shots)
    write_index(shots / INDEX, [made])
    assert find_pairs(shots) == made


def test_faults_of_an_index_are_named_with_file_and_line(tmp_path: Path) -> None:
    plant(tmp_path, ["blur/1.png", "blur/2.png", "sharp/1.png", "sharp/2.png"])
    write_index(tmp_path / INDEX, [find_pairs(tmp_path)])
    good = (tmp_path / INDEX).read_text()
    head, one, two = good.splitlines(keepends=True)

    def fault(text: str) -> str:
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(DataError) as error:
            find_pairs(tmp_path)
        return str(error.value)

    assert "lmfn-index-mine.csv, line 1: expected the columns layout, split" in fault(one + two)
    assert "lmfn-index-mine.csv, line 3: expected 5 columns, got 4" in fault(
        head + one + two.replace("flat pairs,", "")
    )
    assert "lmfn-index-mine.csv, line 2: there is no file " in fault(good.replace("sharp/1.png", "sharp/3.png"))
    assert "lists 1 2 times" in fault(head + one + one)
    assert "lists no pairs" in fault(head)
    (tmp_path / index_name("other")).touch()
    assert "lmfn-index-mine.csv and lmfn-index-other.csv; name one of these files instead" in fault(good)
    assert len(find_pairs(tmp_path / INDEX)) == 2
    (tmp_path / index_name("other")).unlink()
    assert "line 3: a REDS pair among those of flat pairs" in fault(head + one + two.replace("flat pairs", "REDS"))


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(A1)", "'quoted", "a\rb", "a\nb", "a\x1b[31m", 'a,"b', "\tx"]
)
def test_an_index_holds_names_that_a_spreadsheet_would_compute(name: str, tmp_path: Path) -> None:
    plant(tmp_path, [f"{kind}/{name}.png" for kind in ("blur", "sharp")])
    found = find_pairs(tmp_path)
    write_index(tmp_path / INDEX, [found])
    with (tmp_path / INDEX).open(newline="") as file:
        assert all(cell[:1] not in ("=", "+", "-", "@", "\t", "\r") for row in csv.reader(file) for cell in row)
    assert list(find_pairs(tmp_path)) == [replace(pair, frames=()) for pair in found]


def test_names_of_several_splits_do_not_collide(tmp_path: Path) -> None:
    plant(tmp_path, TREES["flat lq with splits"][1])
    assert [p.name for p in find_pairs(tmp_path)] == ["train/a/1", "train/b", "test/a/1", "test/b"]
    assert [p.name for p in find_pairs(tmp_path, split="test")] == ["a/1", "b"]


def test_two_folders_with_equal_names(tmp_path: Path) -> None:
    plant(tmp_path, ["dull/x/1.png", "dull/2.webp", "bright/x/1.tif", "bright/2.jpg"])
    pairs = find_pairs(tmp_path / "dull", sharp=tmp_path / "bright", split="test")
    assert pairs.layout == "two folders"
    assert {(p.name, p.sharp.relative_to(tmp_path).as_posix()) for p in pairs} == {
        ("x/1", "bright/x/1.tif"),
        ("2", "bright/2.jpg"),
    }


@pytest.mark.parametrize(
    ("blurred", "sharp", "files", "names"),
    [
        (
            "{stem}_blur.png",
            "{stem}_sharp.png",
            ["a_blur.png", "x/b_blur.png", "a_sharp.png", "x/b_sharp.png"],
            "a x/b",
        ),
        ("{}_blur", "{}_sharp", ["a_blur.png", "b_blur.jpg", "a_sharp.jpg", "b_sharp.tif", "c.png"], "a b"),
        ("{}_blur.png", "{}.png", ["a_blur.png", "a.png", "b_blur.png", "b.png"], "a b"),
        ("{}.png", "{}_gt.png", ["a_gt.png", "a.png", "b_gt.png", "b.png"], "a b"),
        ("in/b{}", "out/s{}", ["in/b01.png", "in/b02.png", "in/c.png", "out/s01.png", "out/s02.jpg"], "01 02"),
        (
            "{}/dull/{}.png",
            "{}/clear/{}.jpg",
            ["s/dull/1.png", "t/dull/1.png", "s/clear/1.jpg", "t/clear/1.jpg"],
            "s/1 t/1",
        ),
        ("[x] {}.png", "(y) {}.png", ["[x] a.png", "(y) a.png"], "a"),
        ("dull", "clear/{}_s.png", ["dull/a.png", "clear/a_s.png"], "a"),
    ],
)
def test_templates(blurred: str, sharp: str, files: list[str], names: str, tmp_path: Path) -> None:
    plant(tmp_path, files)
    pairs = find_pairs(f"{tmp_path}/{blurred},{tmp_path}/{sharp}")
    assert [pair.name for pair in pairs] == names.split()
    for pair in pairs:
        assert pair.blurred != pair.sharp
        assert {p.relative_to(tmp_path).as_posix() for p in (pair.blurred, pair.sharp)} <= set(files)
    assert list(find_pairs(tmp_path / blurred, sharp=tmp_path / sharp)) == list(pairs)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{}_b.png,{}_c.png", "no image in .* is named like .*{}_c.png"),
        ("{}_b.png,{}_s.png", r"2_b\.png has no sharp partner"),
        ("no/{}_b.png,{}_s.png", "there is no folder .*no, in which .*no/{}_b.png would be"),
        ("{}b,{}_s", r"1_b\.\w+ and .*1_b\.\w+ are both '1_' in .*{}b; give the suffix, too"),
    ],
)
def test_templates_without_pairs(template: str, message: str, tmp_path: Path) -> None:
    plant(tmp_path, ["1_b.png", "1_s.png", "2_b.png", "1_b.jpg"])
    with pytest.raises(DataError, match=message):
        find_pairs(",".join(f"{tmp_path}/{part}" for part in template.split(",")))


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (["blur/1.png", "blur/2.png", "sharp/1.png"], {}, r"blur/2\.png has no sharp partner .* in .*sharp"),
        (["blur/1.png", "sharp/2.png", "sharp/1.png"], {}, r"sharp/2\.png has no blurred partner"),
        (["blur/1.png", "sharp/2.png", "sharp/3.png"], {}, r"blur/1\.png has no sharp .*2 more"),
        (["blur/1.png", "blur/1.jpg", "sharp/1.png"], {}, r"blur/1\.\w+ and .*blur/1\.\w+ are both called '1'"),
        (["train/a/blur/1.png", "train/a/sharp/1.png", "train/b/blur/1.png"], {}, "there is no folder .*train/b/sharp"),
        (["blur/a.txt", "sharp/1.png"], {}, "blur holds no images"),
        (["notes.txt"], {}, r"holds no images \(looked for .*\.png"),
        (["1.png", "2.png"], {}, "(?s)no known layout.*GoPro.*REDS.*two folders whose files have equal names"),
        (["blur/1.png", "sharp/1.png"], {"variant": "blur_gamma"}, "no known layout of pairs with a blur_gamma folder"),
        (["blur/1.png", "sharp/1.png"], {"variant": "gamma"}, "unknown variant 'gamma'"),
        (["blur/1.png", "sharp/1.png"], {"split": "tset"}, "unknown split 'tset'"),
        (["test/blur/1.png", "test/sharp/1.png"], {"split": "train"}, "has no split 'train', only test"),
        (["blur/1.png", "sharp/1.png", "lq/1.png", "gt/1.png"], {}, r"several sets of pairs \(blur, lq\)"),
        (["Blurry1_1.png"], {}, r"Blurry1_1\.png has no sharp images .*Image1/Kernel1/GroundTruth1_1_\*\.png"),
        (
            ["Blurry2_1.png", *(f"Image2/Kernel1/GroundTruth2_1_{n}.png" for n in (1, 2, 5))],
            {},
            r"Image2/Kernel1 lacks 2 images, the first GroundTruth2_1_3\.png",
        ),
        (["Blurry_1.png", "Image1/Kernel1/GroundTruth1_1_1.png"], {}, r"Blurry_1\.png is not called Blurry\{image\}"),
    ],
)
def test_faults_are_named(files: list[str], options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        find_pairs(plant(tmp_path, files), **options)


def test_missing_folders_and_what_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_pairs(tmp_path / "nowhere")
    plant(tmp_path, ["photos/1.png"])
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_pairs(tmp_path / "photos", sharp=tmp_path / "nowhere")
    with pytest.raises(UnknownLayoutError):
        find_pairs(tmp_path / "photos")
