"""Downloaded data sets: check that they are complete, and write an index of their pairs for `find_pairs`."""

import io
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lmfn import atomic, images
from lmfn.absent import absent
from lmfn.cells import one_line
from lmfn.data.layouts import LIST, MOST_LIST, SPLITS, DataError, PairSet, find_pairs, index_name, write_index
from lmfn.options import Variant

AGAIN = "download it again from its authors"
MOST_MEMBERS = 200_000
"""Maximum number of files in an archive; the largest of the data sets has 54,000."""
MOST_READ = 2**24
"""Maximum bytes of a zip's directory and of a tar's header, which are read as a whole; 54,000 files take 8 million."""
MOST_UNPACKED = 100
"""Maximum ratio of unpacked size to archive size. Images hardly shrink by compression."""


@dataclass(frozen=True)
class Known:
    """The contents of a complete data set."""

    layout: str
    pairs: dict[str, int]
    """Number of pairs by split; the split is "" if the data set has none."""
    size: tuple[int, int] | None
    """Height and width of every image; None if they vary."""
    sequences: dict[str, tuple[str, ...]]
    """Names of the sequences by split, if known."""
    variants: tuple[Variant, ...] = ("blur",)
    lists: str = ""
    """Name of the list files of its splits, with `*` in place of the split; empty if it has none."""


def _gopro(names: str) -> tuple[str, ...]:
    return tuple(f"GOPR{name}" for name in names.split())


DATASETS: dict[str, Known] = {
    "gopro": Known(
        "GoPro",
        {"train": 2103, "test": 1111},
        (720, 1280),
        {
            "train": _gopro(
                "0372_07_00 0372_07_01 0374_11_00 0374_11_01 0374_11_02 0374_11_03 0378_13_00 0379_11_00 0380_11_00 "
                "0384_11_01 0384_11_02 0384_11_03 0384_11_04 0385_11_00 0386_11_00 0477_11_00 0857_11_00 0868_11_01 "
                "0868_11_02 0871_11_01 0881_11_00 0884_11_00"
            ),
            "test": _gopro(
                "0384_11_00 0384_11_05 0385_11_01 0396_11_00 0410_11_00 0854_11_00 0862_11_00 0868_11_00 0869_11_00 "
                "0871_11_00 0881_11_01"
            ),
        },
        ("blur", "blur_gamma"),
    ),
    "hide": Known("HIDE", {"train": 6397, "test": 2025}, (720, 1280), {}),
    "realblur-j": Known("RealBlur", {"train": 3758, "test": 980}, None, {}, lists="RealBlur_J_*_list.txt"),
    "realblur-r": Known("RealBlur", {"train": 3758, "test": 980}, None, {}, lists="RealBlur_R_*_list.txt"),
    "rsblur": Known("RSBlur", {"train": 8878, "val": 1120, "test": 3360}, (1200, 1920), {}, lists="RSBlur_real_*.txt"),
    "koehler": Known("Koehler", {"": 48}, (800, 800), {}),
    "reds": Known(
        "REDS",
        {"train": 24000, "val": 3000},
        (720, 1280),
        {"train": tuple(f"{n:03d}" for n in range(240)), "val": tuple(f"{n:03d}" for n in range(30))},
    ),
}


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` found; print its `text()`."""

    name: str
    root: Path
    found: tuple[str, ...]
    """A line for each part, present or not."""
    problems: tuple[str, ...]
    """A sentence for each thing that is missing or wrong."""
    index: Path | None
    """The index file that was written; None if there are problems, or if an archive was checked without unpacking."""

    @property
    def ok(self) -> bool:
        """Whether every part that is present is complete."""
        return not self.problems

    def text(self) -> str:
        """The report as lines of plain text."""
        end = [f"problems: {len(self.problems)}; no index was written", *(f"  {problem}" for problem in self.problems)]
        if self.ok:
            end = [f"index: {self.index}" if self.index else "complete; -o FOLDER unpacks it and writes an index"]
        lines = [f"{self.name}: {self.root}", *(f"  {line}" for line in self.found), *end]
        return "\n".join(map(one_line, lines))


def prepare(name: str, path: str | Path, out: str | Path | None = None) -> PrepareReport:
    """Check that a downloaded data set (a name in `DATASETS`) is complete, and write an index of its pairs for
    `find_pairs`. Nothing is downloaded.

    `path` is its folder or its archive (zip or tar, also compressed). An archive is checked without being unpacked;
    with `out`, a new or empty folder, it is unpacked there if it is complete, or not at all. In a folder the header of
    every image is read. A missing split is reported but is not a problem; an incomplete one is.

    Raises DataError for an unknown name, a missing path, an archive that is truncated, broken or too large for the
    disk, an `out` that is not empty, and for images without a partner.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; there are {', '.join(DATASETS)}")
    path = Path(path)
    if path.is_dir():
        if out is not None:
            raise DataError(f"{path} is a folder, and only archives are unpacked; leave out {out}")
        return _look(name, path, headers=True)
    if not path.is_file():  # a pipe would be waited for
        raise DataError(absent("folder or archive", path))
    with tempfile.TemporaryDirectory() as temporary, _open(path) as archive:
        skeleton = Path(temporary, "names")
        skeleton.mkdir()
        size, most = 0, max(2**30, MOST_UNPACKED * path.stat().st_size)
        # Empty files with the same names suffice for counting; only lists are extracted.
        for number, (entry, member, length) in enumerate(archive.members()):
            size += length
            if size > most or number == MOST_MEMBERS:
                much = f"over {size / 1e9:,.0f} GB" if size > most else f"over {MOST_MEMBERS:,} files"
                raise DataError(f"{path} contains {much}, more than any of the data sets; {AGAIN}")
            file = Path(os.path.normpath(skeleton / member))  # no links are made here
            if not file.is_relative_to(skeleton):
                raise DataError(f"{path} contains {member}, a path outside the archive; {AGAIN}")
            if (longest := max(len(os.fsencode(part)) for part in file.parts)) > atomic.LONGEST_NAME:
                raise DataError(f"{path} contains a name of {longest} bytes, more than file systems allow; {AGAIN}")
            file.parent.mkdir(parents=True, exist_ok=True)
            is_list = LIST.search(Path(member).name) is not None
            if is_list and length > MOST_LIST:
                raise DataError(f"{path}: {member} has {length:,} bytes; a list of pairs has at most {MOST_LIST:,}")
            file.write_bytes(archive.read(entry, MOST_LIST) if is_list else b"")
        if out is None:
            archive.check()
        report = replace(_look(name, skeleton, headers=False), root=path)
        if out is None or not report.ok:
            return report
        _unpack(archive, Path(out), size)
    return _look(name, Path(out), headers=True)


def _look(name: str, path: Path, headers: bool) -> PrepareReport:
    known, root = DATASETS[name], path
    while len(inside := [entry for entry in root.iterdir() if not entry.name.startswith(".")]) == 1:
        if not inside[0].is_dir() or inside[0].name in SPLITS:
            break
        root = inside[0]  # archives contain a single folder with everything in it
    found: list[str] = []
    problems: list[str] = []
    sets: list[PairSet] = []
    for variant in known.variants:
        parts = _parts(known, root, variant)
        sets += parts.values()
        for split, count in known.pairs.items():
            words = ", ".join(filter(None, (split, variant if len(known.variants) > 1 else "")))
            words = f"{words}: " if words else ""
            if split not in parts:
                found.append(f"{words}missing ({count:,} pairs)")
                continue
            part = parts[split]
            found.append(f"{words}{len(part):,} of {count:,} pairs")
            if len(part) != count:
                problems.append(f"{words}{abs(count - len(part)):,} pairs too {'few' if len(part) < count else 'many'}")
            there = Counter(pair.name.rpartition("/")[0] for pair in part)
            missing = [sequence for sequence in known.sequences.get(split, ()) if sequence not in there]
            problems += [f"{words}there is no sequence {sequence}" for sequence in missing]
            if known.layout == "REDS":
                problems += [f"{words}sequence {s} has {n} of 100 pairs" for s, n in there.items() if n != 100]
        unknown = [split for split in parts if split not in known.pairs]
        problems += [f"the pairs are not in folders named {' and '.join(known.pairs)}" for _ in unknown[:1]]
    if not sets:
        lists = f" (looked for {known.lists.replace('*', '{' + ','.join(known.pairs) + '}')})" if known.lists else ""
        problems.append(f"no part of {name} was found in {root}{lists}")
    problems += [problem for part in sets for problem in _headers(known, part)] if headers else []
    index = root / index_name(name) if headers and not problems else None
    if index is not None:
        write_index(index, sets)
    return PrepareReport(name, root, tuple(found), tuple(problems), index)


def _parts(known: Known, root: Path, variant: Variant) -> dict[str, PairSet]:
    """The splits that are present."""
    if known.lists:
        lists = {split: root / known.lists.replace("*", split) for split in known.pairs}
        return {s: replace(find_pairs(file), root=root, split=s) for s, file in lists.items() if file.is_file()}
    try:
        whole = find_pairs(root, variant=variant, indexed=False)
    except DataError:
        if variant == "blur":
            raise
        return {}  # the other variant was not downloaded
    if not whole.layout.startswith(known.layout):
        raise DataError(f"{root} has the layout of {whole.layout}, not that of {known.layout}")
    several = {pair.name.partition("/")[0] for pair in whole}
    if whole.split is not None or not several <= set(SPLITS):
        return {whole.split or "": whole}
    return {
        split: find_pairs(root, split=split, variant=variant, indexed=False) for split in SPLITS if split in several
    }


def _headers(known: Known, pairs: PairSet) -> Iterator[str]:
    for pair in pairs:
        sizes = {}
        for file in (pair.blurred, *(pair.frames or (pair.sharp,))):
            try:
                sizes[file] = images.read_size(file)
            except images.ImageError as error:
                yield str(error)
        wanted = known.size or sizes.get(pair.blurred)
        for file, size in sizes.items():
            if size != wanted and wanted is not None:
                yield f"{file} is {size[1]}x{size[0]}, not {wanted[1]}x{wanted[0]}"


class _Bounded(io.BufferedReader):
    """A file from which no more is read at once than an archive that is none would be taken for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_READ:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(size)


READ_WHOLE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Header(tarfile.TarInfo):
    """The header of a file in a tar; long names and the like, which are read as a whole, are bounded."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in READ_WHOLE and header.size > MOST_READ:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _Zip:
    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file

    def members(self) -> Iterator[tuple[Any, str, int]]:
        """The files in the archive, each with its name and size in bytes."""
        for entry in self.file.infolist():
            if entry.flag_bits & 1:
                raise DataError(f"{self.file.filename} is encrypted; unpack it, and pass the folder instead")
            if not entry.is_dir():
                yield entry, entry.filename, entry.file_size

    def check(self) -> None:
        """Read all files, and compare them with their checksums."""
        if (broken := self.file.testzip()) is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {broken}")

    def read(self, entry: zipfile.ZipInfo, most: int) -> bytes:
        with self.file.open(entry) as file:
            return file.read(most)

    def unpack(self, folder: Path) -> None:
        self.file.extractall(folder)


class _Tar:
    def __init__(self, file: tarfile.TarFile) -> None:
        self.file = file

    def members(self) -> Iterator[tuple[Any, str, int]]:
        return ((entry, entry.name, entry.size) for entry in self.file if entry.isfile())

    def check(self) -> None:
        """Nothing is left to do: listing the members has read the whole archive."""

    def read(self, entry: tarfile.TarInfo, most: int) -> bytes:
        file = self.file.extractfile(entry)
        return file.read(most) if file else b""

    def unpack(self, folder: Path) -> None:
        self.file.extractall(folder, filter="data")


@contextmanager
def _open(path: Path) -> Iterator[_Zip | _Tar]:
    """Open an archive. Any error caused by its contents becomes a DataError."""
    try:
        if zipfile.is_zipfile(path):
            with _Bounded(io.FileIO(path)) as file, zipfile.ZipFile(file) as zipped:
                yield _Zip(zipped)
            return
        try:
            tarred = tarfile.open(path, tarinfo=_Header)  # noqa: SIM115 (its errors are others than those of the work)
        except tarfile.ReadError as error:
            raise DataError(
                f"{path} is neither a folder nor a zip or tar archive, or is cut short; download it again, or unpack it"
            ) from error
        with tarred:
            yield _Tar(tarred)
    except NotImplementedError as error:
        raise DataError(f"{path} cannot be unpacked here ({error}); unpack it, and pass the folder instead") from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, struct.error) as error:
        raise DataError(f"{path} is cut short or broken ({error}); download it again") from error
    except (ValueError, OverflowError, LookupError, RuntimeError, OSError) as error:
        # Raised for damaged headers. An error that names a file is not caused by the archive's contents.
        if isinstance(error, DataError) or getattr(error, "filename", None) is not None:
            raise
        raise DataError(f"{path} is cut short or broken ({error}); download it again") from error


def _unpack(archive: _Zip | _Tar, out: Path, size: int) -> None:
    """Unpack next to `out`, and rename when everything has been written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; remove it or choose another one")
    out.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(out.parent).free):
        raise DataError(
            f"{out} would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; choose another folder"
        )
    beside = atomic.beside(out, f".{os.getpid()}.tmp")
    try:
        archive.unpack(beside)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
