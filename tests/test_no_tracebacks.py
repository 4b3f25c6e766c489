"""`lmfn deblur` on bad input of every kind: one line per fault, the other files are processed, and never a
traceback."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmfn import LMFN, cli, images
from lmfn.images import Photo


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights")
    LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1).save_pretrained(folder)
    return str(folder)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


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
