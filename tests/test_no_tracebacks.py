"""`lmfn deblur` on bad input of every kind: one line per fault, the other files are processed, and never a
traceback."""

import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lmfn import LMFN, Deblurrer, cli, images
from lmfn.images import Photo
from lmfn.metadata.png import chunk


def odd_files(folder: Path) -> dict[str, str]:
    """Files of every kind that yields no result, and what the message on each must contain."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    for name in ("pages.tif", "moving.webp", "moving.png"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    frames[0].save(folder / "whole.jpg")
    jpeg = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "whole.jpg").unlink()
    frames[0].save(folder / "bits.png")
    data = bytearray((folder / "bits.png").read_bytes())
    data[len(data) // 2] ^= 16
    (folder / "bits.png").write_bytes(data)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 400_000, 400_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(bomb)
    (folder / "heic.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "film.webp").write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    (folder / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "text.tif").write_text("no image at all")
    (folder / "empty.png").touch()
    (folder / "zeros.png").write_bytes(bytes(1000))
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "gone.png").symlink_to("nowhere")
    return {
        "pages.tif": "several pages", "moving.webp": "animated WebP of 3", "moving.png": "animated PNG of 3",
        "cut.jpg": "cut short", "bits.png": "wrong checksum", "bomb.png": "", "heic.jpg": "HEIC", "film.webp": "video",
        "page.png": "web page", "text.tif": "not an image", "empty.png": "empty", "zeros.png": "not an image",
        "pipe.png": "pipe", "loop.png": "symbolic links", "gone.png": "No such file",
    }  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("given", ["the folder", "its files", "with names that are not there"])
def test_files(tmp_path: Path, weights: str, given: str, capfd: pytest.CaptureFixture[str]) -> None:
    expected = odd_files(tmp_path / "in")
    images.write(tmp_path / "in" / "good.png", Photo(np.full((40, 50, 3), 99, np.uint8)))
    paths = [str(tmp_path / "in")] if given == "the folder" else sorted(map(str, (tmp_path / "in").iterdir()))
    if given == "with names that are not there":
        expected |= {"n" * 300 + ".png": "no such file", "*.jpg": "no such file", "nowhere": "no such file"}
        paths += [str(tmp_path / "in" / name) for name in ("n" * 300 + ".png", "*.jpg", "nowhere")]
    assert cli.main(["deblur", *paths, "-o", str(tmp_path / "out"), "-w", weights]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    said = capfd.readouterr().err
    lines = said[said.index("1 deblurred") :].splitlines()
    assert lines[0] == f"1 deblurred, {len(expected)} failed:"
    assert len(lines) == 1 + len(expected)
    for name, reason in expected.items():
        (line,) = (line for line in lines if f"/{name}: " in line)
        assert reason in line


ARGUMENTS = {
    "nothing": ([], "no file or folder given"),
    "an unset variable": ([""], "the argument after deblur is empty; this folder is ."),
    "an unset variable as the output": (["a.png", "-o", ""], "the argument after -o is empty"),
    "no such file": (["gone.png"], "gone.png: there is no such file or folder"),
    "no images": (["empty"], "no image (.png"),
    "a format that is not written": (["a.png", "-o", "b.heic"], "b.heic: a file must end in one of"),
    "a typing error": (["a.png", "-o", "b.jgp"], "b.jgp: a file must end in one of"),
    "an extension that is not written": (["a.png", "--ext", "gif"], "the extension is .gif"),
    "one file for two": (["a.png", "c.png", "-o", "b.png"], "b.png is one file"),
    "the input itself": (["a.png", "-o", "a.png"], "would overwrite a.png"),
    "no suffix": (["a.png", "--suffix", ""], "would overwrite a.png"),
    "a file as a folder": (["a.png", "-o", "text/b.png"], "text is no folder"),
    "a slash in the suffix": (["a.png", "--suffix", "/x"], "the suffix is '/x'"),
    "no such weights": (["a.png", "-w", "no/where/at/all"], "no/where/at/all"),
    "a file that is no weights": (["a.png", "-w", "text"], "text"),
    "no such device": (["a.png", "--device", "abacus"], "'abacus' cannot be used"),
    "no such precision here": (["a.png", "--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
    "a name that is no UTF-8": ([os.fsdecode(b"\xff.png")], "there is no such file"),
    "a name with a zero": (["a\0.png"], "there is no such file"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("a.png", "c.png"):
        images.write(file, Photo(np.full((40, 50, 3), 99, np.uint8)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    arguments, message = ARGUMENTS[name]
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["deblur", *arguments]) == 1
    said = capfd.readouterr().err
    assert said.startswith("lmfn: ")
    assert message in said
    assert sorted(tmp_path.rglob("*")) == before


def test_again_and_again(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`lmfn deblur *.png`, then the same with the files that the shell finds afterwards."""
    monkeypatch.chdir(tmp_path)
    images.write("a.png", Photo(np.full((40, 50, 3), 99, np.uint8)))

    def run(*options: str) -> tuple[int, str]:
        status = cli.main(["deblur", *sorted(path.name for path in Path().glob("*.png")), "-w", weights, *options])
        captured = capfd.readouterr()
        return status, captured.out + captured.err

    assert run("--dry-run") == (0, "a.png -> a_deblurred.png\n")
    assert not Path("a_deblurred.png").exists()
    assert run() == (0, "1 deblurred\n")
    images.write("b.png", Photo(np.full((40, 50, 3), 99, np.uint8)))
    status, said = run("--dry-run")
    assert (status, said.splitlines()) == (
        0,
        [
            "b.png -> b_deblurred.png",
            "a.png -> a_deblurred.png (already there)",
            "1 left out: results of earlier runs",
        ],
    )
    status, said = run()
    assert status == 1
    assert said.splitlines() == [
        "1 deblurred, 1 already there and not replaced (--overwrite does it):",
        "  1 left out: results of earlier runs",
    ]
    assert run("--skip-existing")[0] == 0
    assert run("--overwrite")[1].splitlines()[-2].startswith("2 deblurred")
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "a_deblurred.png", "b.png", "b_deblurred.png"]


def test_the_program_itself(tmp_path: Path) -> None:
    """The output as seen from the shell."""
    (tmp_path / "a.png").write_text("no image")
    run = subprocess.run(
        [sys.executable, "-m", "lmfn", "deblur", "a.png"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == "0 deblurred, 1 failed:\n  a.png: not an image, or a broken one\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("length", [249, 255])
def test_names_as_long_as_a_file_system_allows(
    tmp_path: Path, weights: str, suffix: str, length: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Temporary names and claims are not longer; a result whose name would be is refused."""
    name = "a" * (length - len(suffix)) + suffix
    images.write(tmp_path / "in" / name, Photo(np.full((40, 50, 3), 99, np.uint8)))
    given = ["deblur", str(tmp_path / "in" / name), "-w", weights]
    (tmp_path / "out").mkdir()
    assert cli.main([*given, "-o", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    capfd.readouterr()
    assert cli.main([*given, "--skip-existing"]) == 1
    assert f"its result's name would have {length + 10} bytes" in capfd.readouterr().err
    assert cli.main([*given, "-o", str(tmp_path / ("f" * 256))]) == 1
    assert "a folder in its result's path would have 256 bytes" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name]


class Walk:
    """Commands in an empty folder; each returns its status and what it said, which is never a traceback."""

    def __init__(self, weights: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self.weights, self.capfd, self.caplog = weights, capfd, caplog

    def __call__(self, *arguments: str) -> tuple[int, str]:
        try:
            status = cli.main(list(arguments))
        except SystemExit as end:
            status = int(str(end.code))
        captured = self.capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return status, captured.out + captured.err

    def deblur(self, *arguments: str) -> tuple[int, str]:
        return self("deblur", "-w", self.weights, *arguments)


def picture(name: str, **options: object) -> None:
    pixels = np.random.default_rng(0).integers(60, 190, (5, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Path(name).parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(name, **options)


def long_profile(walk: Walk) -> None:
    profile = (
        struct.pack(">I", 70_000) + bytes(12) + b"RGB " + bytes(16) + b"acsp" + bytes(range(256)) * 273 + bytes(72)
    )
    assert len(profile) == 70_000
    picture("a.jpg", icc_profile=profile)
    assert walk.deblur("a.jpg", "-o", "b.jpg")[0] == 0
    assert Image.open("b.jpg").info["icc_profile"] == profile


def no_numbers(walk: Walk) -> None:  # noqa: ARG001
    with pytest.raises(images.ImageError, match=r"a\.png: the pixels are from nan to nan; they must be in \[0, 1\]"):
        images.write("a.png", Photo(np.full((4, 4, 3), np.nan, np.float32)))


def meta_device(walk: Walk) -> None:
    model = LMFN.from_pretrained(walk.weights)
    with torch.device("meta"):
        empty = LMFN(model.config)
    loaded = empty.to_empty(device="cpu")
    loaded.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def pages(walk: Walk) -> None:
    page = Image.new("RGB", (40, 32), "gray")
    page.save("a.tif", save_all=True, append_images=[page, page])
    assert walk.deblur("a.tif", "-o", "b.tif", "--frames", "all")[0] == 0
    with Image.open("b.tif") as written:
        assert written.n_frames == 3


def turned(walk: Walk) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture("a.jpg", exif=exif)
    assert walk.deblur("a.jpg", "-o", "b.jpg")[0] == 0
    with Image.open("b.jpg") as written:
        assert written.size == (40, 48)
        assert written.getexif()[274] == 1


def other_files(walk: Walk) -> None:
    picture("in/a.jfif", format="JPEG")
    for name in ("b.gif", "c.gif", "d.txt"):
        Path("in", name).touch()
    assert walk.deblur("in", "-o", "out") == (0, "1 deblurred:\n  .gif 2, .txt 1 left out\n")
    assert os.listdir("out") == ["a.jfif"]


def checks(walk: Walk) -> None:
    y, x = np.mgrid[:96, :128] // 2
    images.write("a.png", Photo(np.repeat((((y + x) % 2) * 255).astype(np.uint8)[:, :, None], 3, 2)))
    status, said = walk("deblur", "a.png", "-o", "b.png")
    assert status == 0
    assert said.startswith("1 deblurred, 1 of the deblurred doubtful:\n  a.png: the output ")


def own_pairs(walk: Walk) -> None:
    for folder in ("blurred", "sharp"):
        picture(f"my/{folder}/a.png")
    with Image.open("my/blurred/a.png") as sharp:
        blurred = sharp.resize((24, 20)).resize(sharp.size)
    blurred.save("my/blurred/a.png")
    status, said = walk("data", "check", "my/blurred,my/sharp")
    assert status == 0
    assert said.startswith("my/blurred,my/sharp: 1 pairs (two folders)\n")


def one_missing(walk: Walk) -> None:
    picture("a.png")
    status, said = walk.deblur("gone.png", "a.png", "-o", "out")
    assert (status, os.listdir("out")) == (1, ["a.png"])
    assert "1 deblurred, 1 failed:\n  gone.png: there is no such file or folder\n" in said


def whole_messages(walk: Walk) -> None:
    assert walk("train", "--name", "x", "--photos", "gone", "--steps", "1") == (1, "lmfn: there is no folder gone\n")
    assert "x starts from random weights; --from lmfn starts from those of the package" in walk.caplog.text


def traces(walk: Walk) -> None:
    with pytest.raises(RuntimeError, match="trace"):
        torch.jit.trace(LMFN.from_pretrained(walk.weights), torch.rand(1, 3, 32, 32))


def misspelt(walk: Walk) -> None:
    assert walk("trian", "--help") == (2, "lmfn: there is no command 'trian'; did you mean train?\n")
    assert walk("data", "chek", "--help") == (2, "lmfn: there is no command 'chek'; did you mean check?\n")


TINY = ("--patch=32", "--batch=1", "--save-every=1", "--val-every=9", "--workers=0", "--device=cpu", "--precision=fp32")


def broken_photo(walk: Walk) -> None:
    picture("photos/a.png")
    Path("photos/a.png").write_bytes(Path("photos/a.png").read_bytes()[:200])
    status, said = walk("train", "--name", "x", "--photos", "photos", "--steps", "1", *TINY)
    assert status == 1
    assert said.splitlines()[-1].startswith("lmfn: photos/a.png: ")


def flipped_state(walk: Walk) -> None:
    """Also the line after it: other options when a run is resumed are named."""
    images.write("photos/a.png", Photo(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)))
    given = ["train", "--from", walk.weights, "--name", "x", "--photos", "photos", *TINY]
    assert walk(*given, "--steps", "2")[0] == 0
    newest = max(Path("runs/x/state").glob("step-*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    assert walk(*given, "--steps", "2", "--resume", "auto", "--seed", "9")[0] == 0
    assert f"{newest} is damaged" in walk.caplog.text
    assert "another seed: 9; it was 0" in walk.caplog.text


def taken_folder(walk: Walk) -> None:
    Path("runs").touch()
    picture("photos/a.png")
    status, said = walk("train", "--name", "x", "--photos", "photos", "--steps", "1", *TINY)
    assert status == 1
    assert "runs" in said.splitlines()[-1]


def metadata_of_another_kind(walk: Walk) -> None:
    header = b'{"__metadata__":{"lmfn":"[]"}}'
    Path("w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    picture("a.png")
    assert walk("deblur", "a.png", "-w", "w.safetensors") == (
        1,
        "lmfn: w.safetensors: the LMFN metadata in its header is a list, not an object\n",
    )
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("Blurry1_1.png", b"x")
    Path("a.zip").write_bytes(data.getvalue().replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"))
    status, said = walk("data", "prepare", "koehler", "a.zip")
    assert status == 1
    assert said.startswith("lmfn: a.zip")
    assert said.count("\n") == 1


def loop_of_links(walk: Walk) -> None:
    picture("in/b.png")
    Path("in/a.png").symlink_to("a.png")
    status, said = walk.deblur("in", "-o", "out")
    assert (status, os.listdir("out")) == (1, ["b.png"])
    assert "  in/a.png: cannot be read (Too many levels of symbolic links)\n" in said


def masked(walk: Walk) -> None:
    with pytest.raises(TypeError, match=r"masked array; fill it first"):
        Deblurrer(walk.weights)(np.ma.masked_array(np.zeros((32, 32, 3), np.float32)))


WALKS = (
    long_profile, no_numbers, meta_device, pages, turned, other_files, checks, own_pairs, one_missing, whole_messages,
    traces, misspelt, broken_photo, flipped_state, taken_folder, metadata_of_another_kind, loop_of_links, masked,
)  # fmt: skip
"""One of every kind of damage, misleading answer and failure that a user has met."""


@pytest.mark.parametrize("walked", WALKS, ids=lambda walked: walked.__name__)
def test_walks(
    walked: Callable[[Walk], None],
    tmp_path: Path,
    weights: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    walked(Walk(weights, capfd, caplog))
