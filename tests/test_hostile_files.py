"""Archives, lists, packs and settings that are damaged or malicious: one quick error each, with little memory."""

import gzip
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmfn import cli
from lmfn.data import DataError, downloads, prepare
from lmfn.data.layouts import COLUMNS, find_pairs
from lmfn.data.packed import Pack, PackedSource, PackWriter
from lmfn.manifest import Manifest
from lmfn.training.settings import Settings


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("Blurry1_1.png", b"x")
    path.write_bytes(path.read_bytes().replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"))


def unknown_compression(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("Blurry1_1.png", b"x")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(signature) + offset] = 97
    path.write_bytes(data)


def long_list(path: Path) -> None:
    """A terabyte, according to the header."""
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo("RealBlur_J_train_list.txt")
        member.size = 2**40
        file.addfile(member)


def list_that_inflates(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("RealBlur_J_train_list.txt", bytes(2**25))


def many_files(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for n in range(20):
            file.writestr(f"{n}.png", b"")


def outside(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../x.png", b"")


def directory_without_end(path: Path) -> None:
    """A million files by its central directory, each entry of 47 bytes."""
    entry = b"PK\1\2" + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 2**16 - 1, 2**16 - 1, 10**6 * len(entry), 0, 0)
    path.write_bytes(10**6 * entry + end)


def name_without_end(path: Path) -> None:
    """A tar, a few kB by its compression, whose first file has a name of 32 MB."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2**25
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT) + b"a" * member.size + tarfile.TarInfo("a").tobuf())


def long_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a" * 256, b"")


ARCHIVES: dict[Callable[[Path], None], str] = {
    encrypted: "is encrypted; unpack it",
    unknown_compression: "cannot be unpacked here",
    long_list: "more than any of the data sets",
    list_that_inflates: "a list of pairs has",
    many_files: "over 10 files",
    outside: "a path outside the archive",
    directory_without_end: "a directory of 47,000,000 bytes",
    name_without_end: "is neither a folder nor a zip or tar archive",
    long_name: "contains a name of 256 bytes",
}


@pytest.mark.parametrize("make", ARCHIVES, ids=lambda make: make.__name__)
def test_archives(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MOST_MEMBERS", 10)
    make(tmp_path / "archive")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=ARCHIVES[make]) as error:
            prepare("realblur-j", tmp_path / "archive")
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert "archive" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize("kind", ["zip", "tar", "gz", "bz2", "xz"])
def test_flipped_bytes_of_archives(kind: str, tmp_path: Path) -> None:
    """Found, or without consequences; never anything but a DataError or an OSError with a file's name."""
    whole = io.BytesIO()
    files = {f"Image1/Kernel1/GroundTruth1_1_{n}.png": os.urandom(200) for n in range(1, 4)}
    if kind == "zip":
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=whole, mode=f"w:{'' if kind == 'tar' else kind}") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    rng = np.random.default_rng(0)
    for n in range(60):
        data = bytearray(whole.getvalue())
        for place in rng.integers(len(data), size=3):
            data[place] ^= 1 << rng.integers(8)
        if n % 3 == 0:
            data = data[: rng.integers(len(data))]
        (tmp_path / "archive").write_bytes(data)
        try:
            prepare("koehler", tmp_path / "archive")
        except DataError:
            pass
        except OSError as error:
            assert error.filename is not None  # noqa: PT017


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match=r"pipe\.npz: a pipe, not a folder or archive"):
        prepare("koehler", pipe)
    with pytest.raises(DataError, match=r"pipe\.npz: a pipe, not a pack"):
        Pack(pipe)
    with pytest.raises(DataError, match=r"pipe\.npz: a pipe, not a folder or list"):
        find_pairs(pipe)
    with pytest.raises(ValueError, match=r"pipe\.npz is no file; choose another name"):
        Manifest(pipe, "", {})


def test_an_index_with_a_field_without_an_end(tmp_path: Path) -> None:
    for content in (",".join(COLUMNS) + "\n" + "x" * 200_000, ",".join(COLUMNS) + "\nGoPro\0,,\xff"):
        (tmp_path / "lmfn-index-gopro.csv").write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match=r"lmfn-index-gopro.csv, line [012]"):
            find_pairs(tmp_path)


def test_a_film_is_no_list(tmp_path: Path) -> None:
    with (tmp_path / "film.mp4").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match="neither a folder nor a list"):
        find_pairs(tmp_path / "film.mp4")


def test_packs(tmp_path: Path) -> None:
    writer = PackWriter(1e6)
    numbers = writer.add([np.zeros((8, 9, 3), np.uint8)] * 2)
    assert numbers is not None
    path = tmp_path / "pack.npz"
    path.write_bytes(writer.content([PackedSource("pairs", "x", 1.0, [numbers])]))
    with np.load(path) as arrays:
        index, data = json.loads(arrays["index"].tobytes()), arrays["data"]
    assert Pack(path).read(1).shape == (8, 9, 3)

    def write(text: str, save: Callable[..., None] = np.savez) -> None:
        save(path, index=np.frombuffer(text.encode(), np.uint8), data=data)

    for change in (
        {"sizes": [["a", 9], [8, 9]]}, {"sizes": [[8, 9]]}, {"sizes": 3}, {"sizes": [[-8, 9], [8, 9]]},
        {"ends": [0, 10**9]}, {"ends": None}, {"ends": [5, 1]}, {"sources": [3]}, {"sources": {}, "ends": []},
        {"sources": [{"kind": "films", "path": "x", "weight": 1, "items": []}]},
        {"sources": [{"kind": "pairs", "path": "x", "weight": "much", "items": []}]},
        {"sources": [{"kind": "pairs", "path": "x", "weight": 1, "items": [[0, 7]]}]},
        {"sources": [{"kind": "pairs", "path": "x", "weight": 1, "items": [["0", 1]]}]},
    ):  # fmt: skip
        write(json.dumps(index | change))
        with pytest.raises(DataError, match=r"pack\.npz is not a pack, or damaged"):
            Pack(path)
    for text in ("3", "[]", "{", "[" * 100_000):
        write(text)
        with pytest.raises(DataError, match=r"pack\.npz is not a pack, or damaged"):
            Pack(path)
    write(json.dumps(index) + " " * 10**6, np.savez_compressed)
    with pytest.raises(DataError, match="it is compressed"):
        Pack(path)
    write(json.dumps(index | {"sizes": [[8, 9], [4, 9]]}))
    with pytest.raises(DataError, match="image 1 of the pack is broken"):
        Pack(path).read(1)


SETTINGS = {
    "batch: abc": "batch is 'abc'; it must be a whole number",
    "batch: 1.5": "a whole number",
    "batch: true": "a whole number",
    "lr: 1e-4": "lr is '1e-4'; it must be a number",
    "compile: 1": "true or false",
    "loss: l3": "loss is 'l3'; it must be mse, l1",
    "pairs: 3": "a list of texts",
    "betas: [0.9]": "a list of 2 numbers",
    "val: 3": "a path or null",
    "blur: 3": "blur is 3; it must contain lines",
    "blur: {kinds: {shake: much}}": "blur.kinds.shake is 'much'",
    "blur: {speed: 3}": "unknown setting 'speed' in blur",
    "3: 4": "unknown setting 3",
    "[" * 5000: "nested too deeply",
    "# " + "x" * 2**16: "more than 65,536 bytes",
    "&a [*a]": "lines of NAME: VALUE",
    "\0": "special characters",
    "? [a]\n: 1": "unhashable key",
}


@pytest.mark.parametrize("text", SETTINGS, ids=lambda text: text[:20])
def test_settings(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml: ") as error:
        Settings.read(tmp_path / "run.yaml")
    assert SETTINGS[text] in str(error.value)
    with pytest.raises(SystemExit, match="1"):
        cli.main(["train", "--config", str(tmp_path / "run.yaml")])
    assert capsys.readouterr().err.startswith(f"lmfn: {tmp_path}")
