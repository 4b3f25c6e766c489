"""Deblurring of files and folders, with a stand-in for the network."""

import os
import warnings
from pathlib import Path

import numpy as np
import OpenImageIO as oiio  # noqa: N813
import pytest
from PIL import Image, ImageCms

from lmfn import images
from lmfn.files import DeblurSummary, Plan, deblur_files, plan
from lmfn.images import ImageError, Photo, heif

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def negative(image):
    """A stand-in for a deblurrer whose effect is easy to recognise; it leaves alpha unchanged."""
    result = image.copy()
    colours = 3 if image.shape[2] > 2 else 1
    result[:, :, :colours] = 1 - image[:, :, :colours]
    return result


def save(path, seed=0, size=(6, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write(path, Photo(picture(*size, 3, seed=seed)))
    return path


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def run(paths, out=None, **options):
    return deblur_files(paths, out, **({"deblurrer": negative} | options))


def test_one_file_beside_itself(tmp_path, capfd):
    source = save(tmp_path / "häß lich.png")
    before = source.read_bytes()
    result = run([source])
    assert result == DeblurSummary(done=[tmp_path / "häß lich_deblurred.png"])
    assert np.array_equal(images.read_rgb(result.done[0]), 255 - images.read_rgb(source))
    assert source.read_bytes() == before
    assert str(result) == "1 deblurred"
    assert capfd.readouterr() == ("", "")


def test_names(tmp_path):
    source = save(tmp_path / "a.png")
    assert run([source], suffix="-sharp").done == [tmp_path / "a-sharp.png"]
    assert run([source], extension="JPG").done == [tmp_path / "a_deblurred.jpg"]
    assert run([source], tmp_path / "new" / "b.tif").done == [tmp_path / "new" / "b.tif"]
    assert run([source], tmp_path / "folder").done == [tmp_path / "folder" / "a.png"]
    (tmp_path / "x.png").mkdir()
    assert run([source], tmp_path / "x.png").done == [tmp_path / "x.png" / "a.png"]
    assert Image.open(tmp_path / "a_deblurred.jpg").format == "JPEG"
    assert Image.open(tmp_path / "new" / "b.tif").format == "TIFF"


def test_a_folder_keeps_its_tree_and_its_other_files_are_no_failures(tmp_path, capfd):
    for name in ("a.png", "sub/b.jpg", "sub/deep/c.TIF", ".hidden/d.png"):
        save(tmp_path / "album" / name)
    (tmp_path / "album" / "notes.txt").write_text("no image")
    expected = ["a.png", "sub/b.jpg", "sub/deep/c.TIF"]
    result = run([tmp_path / "album"], tmp_path / "out")
    assert tree(tmp_path / "out") == expected
    assert (len(result.done), result.skipped, result.failed) == (3, [], [])
    assert "3/3" in capfd.readouterr().err
    run([tmp_path / "album"])
    assert tree(tmp_path / "album_deblurred") == expected
    assert tree(tmp_path / "album") == sorted([*expected, ".hidden/d.png", "notes.txt"])


def test_the_folder_one_is_in(tmp_path, monkeypatch):
    save(tmp_path / "album" / "a.png")
    monkeypatch.chdir(tmp_path / "album")
    assert run(["."]).done == [tmp_path / "album_deblurred" / "a.png"]


def test_own_results_inside_the_folder_are_left_out(tmp_path):
    save(tmp_path / "a.png")
    for again in (False, True):
        result = run([tmp_path], tmp_path / "out", overwrite=again)
        assert result.done == [tmp_path / "out" / "a.png"]
        assert result.notes == (["1 left out: results of earlier runs"] if again else [])
    assert tree(tmp_path) == ["a.png", "out/a.png"]


def test_out_above_the_folder(tmp_path):
    save(tmp_path / "album" / "a.png")
    assert run([tmp_path / "album"], tmp_path).done == [tmp_path / "a.png"]


def test_inputs_are_never_overwritten(tmp_path):
    source, other = save(tmp_path / "album" / "a.png"), save(tmp_path / "album" / "b.png")
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "album")
    (tmp_path / "link.png").symlink_to(source)
    for paths, out, options in (
        ([source], source, {}),
        ([source], tmp_path / "album", {}),
        ([source], tmp_path / "link", {}),
        ([source], tmp_path / "link.png", {}),
        ([tmp_path / "link.png"], source, {}),
        ([source], None, {"suffix": ""}),
        ([tmp_path / "album"], tmp_path / "album", {}),
        ([tmp_path / "album"], tmp_path / "link", {}),
        ([tmp_path / "album"], None, {"suffix": ""}),
        ([source], tmp_path / "album" / ".." / "album" / "a.png", {}),
    ):
        with pytest.raises(ValueError, match=r"would overwrite .*choose another output"):
            run(paths, out, **options)
        with pytest.raises(ValueError, match="would overwrite"):
            run(paths, out, overwrite=True, **options)
    one, two = save(tmp_path / "x" / "a.png"), save(tmp_path / "y" / "a.png")
    with pytest.raises(ValueError, match=r"x/a\.png and .*y/a\.png would both become"):
        run([one, two], tmp_path / "y", overwrite=True)
    assert source.read_bytes() == before
    assert tree(tmp_path / "album") == ["a.png", "b.png"]
    assert other.exists()


def test_two_images_with_one_result(tmp_path):
    one, two = save(tmp_path / "one" / "a.png"), save(tmp_path / "two" / "a.png")
    with pytest.raises(ValueError, match=r"one/a\.png and .*two/a\.png would both become .*out/a\.png"):
        run([one, two], tmp_path / "out")
    with pytest.raises(ValueError, match=r"one/a\.png and .*two/a\.png would both become"):
        run([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    save(tmp_path / "one" / "a.tif")
    with pytest.raises(ValueError, match=r"a\.png and .*a\.tif would both become .*a\.jpg"):
        run([tmp_path / "one"], tmp_path / "out", extension=".jpg")
    assert not (tmp_path / "out").exists()
    assert run([one, one], tmp_path / "out").done == [tmp_path / "out" / "a.png"]


def test_what_is_wrong_is_said_before_the_work(tmp_path):
    source = save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "drawing.gif").write_bytes(b"GIF89a")
    (tmp_path / "photo").write_bytes(source.read_bytes())

    def never(_):
        raise AssertionError("the network was run")

    for paths, out, options, message in (
        (
            [tmp_path / "gone.png", tmp_path / "off"],
            None,
            {},
            r"gone\.png: there is no .*\n.*off: there",
        ),
        ([tmp_path / "empty"], None, {}, r"no image \(\.png.*empty"),
        ([], None, {}, "no path was given"),
        ([source], tmp_path / "file", {}, "file is a file, and no image"),
        ([source, source], tmp_path / "b.png", {}, r"b\.png is one file.*give a folder"),
        ([tmp_path], tmp_path / "b.png", {}, r"b\.png is one file.*give a folder"),
        ([source], tmp_path / "b.png", {"extension": ".jpg"}, r"b\.png does not end in \.jpg"),
        ([source], None, {"extension": ".bmp"}, r"\.bmp; it must be one of \.png"),
        ([source], None, {"extension": "heic"}, r"\.heic; it must be one of \.png"),
        (
            [source],
            tmp_path / "b.jgp",
            {},
            r"b\.jgp: a file must end in one of \.png.*; make a folder",
        ),
        ([tmp_path], tmp_path / "b.heic", {}, r"b\.heic: a file must end in one of"),
        ([source], tmp_path / "file" / "b.png", {}, r"b\.png cannot be written \(.*file is no folder\)"),
        ([source], None, {"suffix": "x" * 251}, r"its result's name would have 256 bytes"),
        ([tmp_path / "drawing.gif"], None, {}, r"drawing\.gif: GIF; convert it"),
        ([tmp_path / "photo"], None, {}, r"photo: a name without a suffix is not written; choose with --ext"),
    ):
        with pytest.raises(ValueError, match=message):
            run(paths, out, deblurrer=never, **options)
    assert tree(tmp_path) == ["a.png", "drawing.gif", "file", "photo"]
    assert run([tmp_path / "photo"], extension="png").done == [tmp_path / "photo_deblurred.png"]
    assert run([tmp_path], tmp_path / "trip.2024").done == [
        tmp_path / "trip.2024" / name for name in ("a.png", "photo_deblurred.png")
    ]


def test_one_broken_file_does_not_stop_the_others(tmp_path):
    save(tmp_path / "in" / "a.png")
    whole = save(tmp_path / "in" / "z.png", seed=1).read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    given = [tmp_path / "gone.png", tmp_path / "in", tmp_path / "notes.txt", tmp_path / "*.jpg"]
    result = run(given, tmp_path / "out")
    assert tree(tmp_path / "out") == ["a.png", "z.png"]
    assert [path.name for path, _ in result.failed] == ["gone.png", "*.jpg", "notes.txt", "cut.png", "text.jpg"]
    summary = str(result).splitlines()
    assert summary[0] == "2 deblurred, 5 failed:"
    for line, (path, message) in zip(summary[1:], result.failed, strict=True):
        assert line == f"  {message}"
        assert message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("error", "arguments"),
    [(MemoryError, ["too large"]), (MemoryError, []), (OSError, [5, "I/O"]), (RuntimeError, ["CUDA out of memory"])],
)
def test_an_error_in_the_work_does_not_stop_the_others(tmp_path, error, arguments):
    paths = [save(tmp_path / name, seed) for seed, name in enumerate(("a.png", "b.png", "c.png"))]
    calls = []

    def fail_once(image):
        calls.append(image)
        if len(calls) == 2:
            raise error(*arguments)
        return image

    result = run(paths, tmp_path / "out", deblurrer=fail_once)
    assert tree(tmp_path / "out") == ["a.png", "c.png"]
    assert result.failed == [(paths[1], f"{paths[1]}: {str(error(*arguments)) or 'MemoryError'}")]


def test_what_cannot_be_written_is_reported(tmp_path, monkeypatch):
    sources = [save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "sub" / "b.png")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()  # a file in place of a folder: even root cannot write to it
    result = run([tmp_path / "in"], tmp_path / "out")
    assert result.done == [tmp_path / "out" / "a.png"]
    assert result.failed[0][0] == sources[1]
    assert "b.png cannot be written" in result.failed[0][1]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run([tmp_path / "in" / "a.png"], tmp_path / "new")
    assert result.failed == [(sources[0], f"{tmp_path / 'new' / 'a.png'}: cannot be written (No space left on device)")]


def test_existing_results_are_replaced_where_that_is_asked_for(tmp_path):
    source, other = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    old = tmp_path / "a_deblurred.png"
    old.write_bytes(b"old")
    result = run([source, other])
    assert result == DeblurSummary(skipped=[old], done=[tmp_path / "b_deblurred.png"])
    assert str(result) == "1 deblurred, 1 already there and not replaced (--overwrite does it)"
    assert old.read_bytes() == b"old"
    assert run([source], overwrite=True).done == [old]
    assert np.array_equal(images.read_rgb(old), 255 - images.read_rgb(source))


def test_results_of_earlier_runs_are_no_inputs(tmp_path, monkeypatch):
    """As `lmfn deblur *` repeated twice, with another format in between."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "album/c.png", "album/deep/d.png"):
        save(tmp_path / name)
    first = sorted(tmp_path.iterdir())
    expected = ["a_deblurred.png", "album_deblurred/c.png", "album_deblurred/deep/d.png", "b_deblurred.png"]
    assert len(run(first).done) == 4
    assert [name for name in tree(tmp_path) if "deblurred" in name] == expected
    run(sorted(tmp_path.iterdir()), extension=".jpg")
    everything = sorted(tmp_path.iterdir())
    for again in (everything, [tmp_path], [Path(path.name) for path in everything]):
        planned = plan(again)
        assert len(planned.jobs) + len(planned.existing) == 4, again
        assert len(planned.results) == 8, again
        assert planned.left_out() == ["8 left out: results of earlier runs"]
    assert len(plan(everything, "out").jobs) == 4
    # A result given by itself is an input.
    for alone in ("a_deblurred.png", "album_deblurred"):
        assert not plan([alone]).results
    assert plan([tmp_path / "a.png", tmp_path / "b_deblurred.png"]).results == []


def test_an_output_folder_among_the_inputs_is_none(tmp_path, monkeypatch):
    """As `lmfn deblur * -o out` run twice."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    assert run(["a.png"], "out").done == [Path("out/a.png")]
    result = run(["a.png", "out"], "out", overwrite=True)
    assert result.done == [Path("out/a.png")]
    assert result.notes == ["1 left out: results of earlier runs"]
    # Everything in a folder below `out` is an input.
    save(tmp_path / "old" / "b.png")
    assert [source for source, _ in plan(["old", "out"], "..").jobs] == [Path("old/b.png"), Path("out/a.png")]


def test_other_files_are_counted_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(images.reading, "SUFFIXES", tuple(images.WRITABLE))  # as without pillow-heif
    save(tmp_path / "in" / "a.jfif")
    for number in range(12):
        (tmp_path / "in" / f"{number}.HEIC").touch()
    for name in ("b.gif", "sub/c.gif", "notes.txt", "README", ".hidden.gif"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path)
    result = run([tmp_path / "in"], tmp_path / "out")
    assert result.done == [tmp_path / "out" / "a.jfif"]
    assert result.failed == []
    assert str(result).splitlines() == [
        "1 deblurred:",
        "  .heic 12, .gif 2, without suffix 1, links 1, .txt 1 left out "
        "(to read HEIC and AVIF: pip install pillow-heif)",
    ]
    (tmp_path / "in" / "a.jfif").unlink()
    with pytest.raises(ValueError, match=r"no image \(.*\n\.heic 12, .*pip install pillow-heif"):
        run([tmp_path / "in"], tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_odd_names_and_files_are_one_line_each(tmp_path):
    folder = tmp_path / "in"
    save(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere")
    save(folder / ("n" * 251 + ".png"))
    save(folder / ("m" * 245 + ".png"))
    for overwrite in (False, True):
        result = run(sorted(folder.iterdir()), overwrite=overwrite)
        assert result.done == [folder / "good_deblurred.png"]
        assert {path.name[:4]: message.rpartition(": ")[2] for path, message in result.failed} == {
            "pipe": "a pipe, not a file",
            "loop": "cannot be read (Too many levels of symbolic links)",
            "gone": "cannot be read (No such file or directory)",
            "nnnn": "its result's name would have 265 bytes; 255 are the most",
            "mmmm": "its result's name would have 259 bytes; 255 are the most",
        }
    assert len(run([folder], tmp_path / "out").done) == 3


def test_heic_becomes_jpeg(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.full((48, 64, 3), 80, np.uint8)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.HEIC", quality=95)
    Image.fromarray(pixels).save(tmp_path / "b.avif")
    result = run([tmp_path / "a.HEIC", tmp_path / "b.avif"])
    assert result.done == [tmp_path / "a_deblurred.jpg", tmp_path / "b_deblurred.jpg"]
    assert np.abs(images.read_rgb(result.done[0]).astype(int) - 175).max() < 3
    assert run([tmp_path / "a.HEIC"], extension="png").done == [tmp_path / "a_deblurred.png"]
    assert heif.SUFFIXES == (".heic", ".heif", ".hif", ".avif")


def test_frames(tmp_path):
    pages = [Image.fromarray(np.full((20, 30, 3), 40 * n, np.uint8)) for n in (1, 2, 3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "moving.webp", save_all=True, append_images=pages[1:], duration=70, lossless=True)
    pages[0].save(tmp_path / "moving.png", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.png")
    sources = sorted(tmp_path.iterdir())
    calls = []

    def counted(image):
        calls.append(image)
        return negative(image)

    result = run(sources, deblurrer=counted)
    assert [path.name for path in result.done] == ["one_deblurred.png"]
    assert [message.split(": ")[1].split(";")[0] for _, message in result.failed] == [
        "an animated PNG of 3 frames", "an animated WebP of 3 frames", "a TIFF of several pages",
    ]  # fmt: skip
    assert len(calls) == 1
    result = run(sources, tmp_path / "all", frames="all", deblurrer=counted)
    assert [path.name for path in result.done] == ["moving.webp", "one.png", "pages.tif"]
    assert "an animated PNG of 3 frames, of which only the first can be read" in result.failed[0][1]
    for name in ("pages.tif", "moving.webp"):
        written = Image.open(tmp_path / "all" / name)
        assert written.n_frames == 3
        for number in range(3):
            written.seek(number)
            assert np.abs(np.asarray(written.convert("RGB")).astype(int) - (215 - 40 * number)).max() <= 2
    result = run(sources, tmp_path / "first", frames="first")
    assert len(result.done) == 4
    assert all(abs(int(images.read_rgb(path)[9, 9, 0]) - 215) <= 2 for path in result.done)
    calls.clear()
    result = run([tmp_path / "pages.tif"], tmp_path / "a.jpg", frames="all", deblurrer=counted)
    assert "JPEG holds one image; write several as a TIFF (pages) or WebP (frames)" in result.failed[0][1]
    assert calls == []


def test_what_the_format_cannot_hold_is_refused_before_the_work(tmp_path):
    calls = []

    def counted(image):
        calls.append(image)
        return negative(image)

    images.write(tmp_path / "alpha.png", Photo(picture(6, 7, 4)))
    images.write(tmp_path / "wide.png", Photo(picture(1, 16_384, 1)))
    result = run([tmp_path / "alpha.png"], tmp_path / "out", extension="jpg", deblurrer=counted)
    assert "JPEG cannot hold the image's transparency" in result.failed[0][1]
    result = run([tmp_path / "wide.png"], tmp_path / "out", extension="webp", deblurrer=counted)
    assert "WebP holds 16,383 pixels a side" in result.failed[0][1]
    pages = [Image.fromarray(np.full((9, 9, 4), n, np.uint8)) for n in (1, 2)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    result = run([tmp_path / "pages.tif"], tmp_path / "out", extension="jpg", frames="first", deblurrer=counted)
    assert "JPEG cannot hold the image's transparency" in result.failed[0][1]
    assert calls == []


def test_a_note_on_every_page_is_one_note(tmp_path):
    pages = [Image.fromarray(np.full((20, 30, 3), 40 * n, np.uint8)).convert("CMYK") for n in (1, 2, 3)]
    inks = SRGB[:16] + b"CMYK" + SRGB[20:]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:], icc_profile=inks)
    result = run([tmp_path / "pages.tif"], frames="all")
    assert len(result.done) == len(result.notes) == 1
    assert "its colour profile is for CMYK" in result.notes[0]


def test_what_cannot_be_kept_is_a_note(tmp_path):
    source = save(tmp_path / "a.png")
    result = run([source], tmp_path / "b.png", deblurrer=lambda image: image * 0 + 1.001)
    assert len(result.notes) == 1
    assert "b.png: pixels from" in result.notes[0]
    assert str(result).startswith("1 deblurred:\n  ")
    result = run([source], tmp_path / "c.png", deblurrer=lambda image: image + 1)
    assert "c.png: the pixels are from 1." in result.failed[0][1]


def test_a_plan_reads_as_what_will_be_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "b_deblurred.png"):
        save(Path(name))
    planned = plan(["a.png", "b.png", "b_deblurred.png", "c.png"], extension=".png")
    assert str(planned).splitlines() == [
        "a.png -> a_deblurred.png",
        "b.png -> b_deblurred.png (already there)",
        "c.png: there is no such file or folder",
        "1 left out: results of earlier runs",
    ]
    assert plan(["b.png"], overwrite=True) == Plan(jobs=[(Path("b.png"), Path("b_deblurred.png"))])


def test_ctrl_c_leaves_no_half_file(tmp_path, monkeypatch):
    paths = [save(tmp_path / "a.png"), save(tmp_path / "b.png")]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(paths, tmp_path / "out")
    assert tree(tmp_path / "out") == []


def test_depth_alpha_profile_and_upright_go_through(tmp_path):
    """A 16-bit gray TIFF with alpha, rotated by its orientation."""
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 9, 2), dtype=np.uint16)
    spec = oiio.ImageSpec(9, 5, 2, "uint16")
    spec.channelnames, spec.alpha_channel = ("Y", "A"), 1
    spec.attribute("oiio:UnassociatedAlpha", 1)
    spec.attribute("Orientation", 6)
    spec.attribute("Make", "Canon")
    gray = SRGB[:16] + b"GRAY" + SRGB[20:]
    spec.attribute("ICCProfile", f"uint8[{len(gray)}]", np.frombuffer(gray, np.uint8))
    file = oiio.ImageOutput.create("a.tif")
    assert file.open(str(tmp_path / "a.tif"), spec)
    assert file.write_image(pixels)
    assert file.close()

    (target,) = run([tmp_path / "a.tif"]).done
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    file = oiio.ImageInput.open(str(target), config)
    result = file.read_image(0, 0, 0, 2, "unknown")
    upright = np.rot90(pixels, -1)
    assert result.dtype == np.uint16
    assert np.array_equal(result[:, :, 1], upright[:, :, 1])
    assert np.array_equal(result[:, :, 0], 65535 - upright[:, :, 0])
    assert file.spec().get_int_attribute("Orientation", 1) == 1
    assert file.spec().get_string_attribute("Make") == "Canon"
    assert np.asarray(file.spec()["ICCProfile"]).tobytes() == gray


def test_an_unreadable_folder_does_not_stop_the_others(tmp_path, monkeypatch):
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "sub" / "b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = run([tmp_path / "in"], tmp_path / "out")
    assert result.done == [tmp_path / "out" / "a.png"]
    place = tmp_path / "in" / "sub"
    assert result.failed == [(place, f"{place}: the folder cannot be read (Permission denied)")]
    with pytest.raises(ImageError, match=r"sub: the folder cannot be read \(Permission denied\)"):
        images.find_images(tmp_path / "in")


def test_other_warnings_pass(tmp_path):
    def warned(image):
        warnings.warn("hot", RuntimeWarning, stacklevel=1)
        return image

    with pytest.warns(RuntimeWarning, match="hot"):
        assert run([save(tmp_path / "a.png")], deblurrer=warned).doubtful == []
