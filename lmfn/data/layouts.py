"""The folder layouts of deblurring data sets, recognised automatically."""

import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lmfn import atomic, images
from lmfn.absent import absent
from lmfn.cells import from_cell, to_cell
from lmfn.options import Variant

log = logging.getLogger("lmfn")

SPLITS = ("train", "val", "test")
KNOWN_LAYOUTS = """GoPro: {train,test}/SEQUENCE/{blur,blur_gamma,sharp}/
  flat pairs: {train,val,test}/{blur,sharp}/, {input,target}/, {lq,gt}/ or {LQ,GT}/, {blur,sharp}_crops/ or
    {input,target}_crops/, also without the split's folder
  HIDE: train/, test/{test-close-ups,test-long-shot}/, GT/
  RealBlur: SCENE/{blur/blur_K.png,gt/gt_K.png}, or its lists of two columns, *_train_list.txt and *_test_list.txt
  RSBlur: RSBlur/SCENE/SHOT/{real_blur/real_blur,gt/gt_sharp}.png, or its lists, RSBlur_real_{train,val,test}.txt
  REDS: {train,val}_{blur,sharp}/SEQUENCE/
  Koehler: Blurry{1..4}_{1..12}.png, Image{I}/Kernel{K}/GroundTruth{I}_{K}_{N}.png
  or a folder with an index of `lmfn data prepare` (lmfn-index-NAME.csv)"""
ANY_NAMES = (
    "Any two folders whose files have equal names can be given as BLURRED,SHARP, and files of any other names as two "
    "templates in which {} is the part that both names share, as in my/{}_blur.png,my/{}_sharp.png"
)
MOST_LIST = 2**24
"""Maximum bytes of a list of pairs; the longest list in the data sets has 1.3 million."""
LIST = re.compile(r"(?:_(train|test)_list|^RSBlur_real_(train|val|test))\.txt$")
"""Names of RealBlur's and RSBlur's lists of pairs."""
BRACES = re.compile(r"\{\w*\}")
"""The placeholder for a part of a name in a template."""
Item = TypeVar("Item")
COLUMNS = ("layout", "split", "name", "blurred", "sharp")


class DataError(ValueError):
    """Something is wrong with the data; the message names the file and the remedy."""


class UnknownLayoutError(DataError):
    """A folder contains images but has none of the known layouts of pairs."""


@dataclass(frozen=True)
class Pair:
    """A blurred photograph and a sharp one of the same moment."""

    name: str
    """Unique in its set, e.g. `GOPR0384_11_00/000001`."""
    blurred: Path
    sharp: Path
    frames: tuple[Path, ...] = ()
    """Only for Koehler: the sharp images of all moments of the exposure; `sharp` is the middle one."""


@dataclass(frozen=True)
class PairSet:
    """The pairs of a data set."""

    layout: str
    """The recognised layout: `GoPro (blur)`, `GoPro (blur_gamma)`, `flat pairs`, `HIDE`, `RealBlur`, `RSBlur`, `REDS`,
    `Koehler` or `two folders`."""
    root: Path
    split: str | None
    """`train`, `val` or `test`; None if the root has no splits or all were taken."""
    pairs: tuple[Pair, ...]
    """At least one, sorted by folder and file name."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def spread(self, count: int) -> "PairSet":
        """`count` of the pairs, or all if there are fewer, evenly spaced in their order."""
        return replace(self, pairs=tuple(spread(self.pairs, count)))


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, or all if there are fewer, evenly spaced in their order."""
    count = min(count, len(items))
    return [items[n * len(items) // count] for n in range(count)]


def find_pairs(
    root: str | Path,
    *,
    sharp: str | Path | None = None,
    split: str | None = None,
    variant: Variant = "blur",
    indexed: bool = True,
) -> PairSet:
    """The pairs below `root`, which may have any of the known layouts; the layout found is logged.

    With `sharp`, or with the text `BLURRED,SHARP`, `root` contains the blurred and `sharp` the sharp images, under the
    same names in both (suffixes may differ). Each may be a template instead, such as `my/{}_blur.png` and
    `my/{}_sharp.png`: `{}`, or a word in braces, stands for the part that the names of a pair share, including
    subfolders. Otherwise `root` has the layout of GoPro, HIDE, RealBlur, RSBlur, REDS or Koehler, or is a folder of
    flat pairs, a list file of RealBlur or RSBlur, or an index written by `prepare` or a folder with one;
    `indexed=False` ignores an index in the folder.

    `split` is "train", "val" or "test"; it is ignored if the root has no splits. None takes all splits and prefixes
    names with the split. "test" takes `val` if there is no `test`, as in REDS. `variant` applies to GoPro: `blur`, or
    `blur_gamma`, whose frames were averaged after undoing a gamma of 2.2.

    Raises DataError for a folder that is missing, is empty, or lacks the split or the variant, for an image without a
    partner, and for two images of the same name; UnknownLayoutError if no layout is recognised.
    """
    if sharp is None:
        root, sharp = split_pair(str(root))
    root = Path(root)
    if split not in (None, *SPLITS):
        raise DataError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
    if variant not in ("blur", "blur_gamma"):
        raise DataError(f"unknown variant {variant!r}; there are blur and blur_gamma")
    if sharp is not None:
        return _found("two folders", root, None, _match(_Folders(root, Path(sharp))))
    indices = [root] if root.match(index_name("*")) else sorted(root.glob(index_name("*"))) if indexed else []
    if len(indices) > 1:
        raise DataError(f"{root} holds {indices[0].name} and {indices[1].name}; name one of these files instead")
    if indices and indices[0].is_file():
        return _indexed(indices[0], split, variant)
    if root.is_file():
        return _found(_layout_of_list(root), root, None, _listed(root))
    if not root.is_dir():
        raise DataError(absent("folder or list", root))
    return _in_folder(root, split, variant)


def _in_folder(root: Path, split: str | None, variant: Variant) -> PairSet:
    """The pairs of a folder in one of the known layouts."""
    if any(root.glob("Blurry*_*.png")):
        return _found("Koehler", root, None, _koehler(root))
    lists = _list_files(root)
    if lists:
        chosen = _choose(root, list(lists), split)
        parts = {name: _listed(lists[name]) for name in chosen}
        return _join(_layout_of_list(lists[chosen[0]]), root, parts)
    for layout, recognise in LAYOUTS.items():
        folders = recognise(root, variant)
        if folders:
            chosen = _choose(root, list(folders), split)
            layout = f"{layout} ({variant})" if layout == "GoPro" or variant != "blur" else layout
            return _join(layout, root, {name: [p for f in folders[name] for p in _match(f)] for name in chosen})
    if not images.find_images(root):
        raise DataError(f"{root} holds no images (looked for {', '.join(sorted(images.SUFFIXES))})")
    wanted = "" if variant == "blur" else f" with a {variant} folder"
    raise UnknownLayoutError(
        f"{root} is in no known layout of pairs{wanted}. Known are\n  {KNOWN_LAYOUTS}\n{ANY_NAMES}"
    )


def split_pair(text: str) -> tuple[str, str | None]:
    """`BLURRED,SHARP` as its two parts; an existing path, and one without a comma, is the first alone."""
    blurred, comma, sharp = text.partition(",")
    return (blurred, sharp) if comma and not Path(text).exists() else (text, None)


@dataclass(frozen=True)
class _Folders:
    blurred: Path
    sharp: Path
    prefix: str = ""
    """Prefix of the names of these pairs."""
    key: Callable[[str], str] = str
    """From an image's path below its folder, without suffix, to the key that it shares with its partner."""
    more_sharp: bool = False
    """Whether the sharp folder may also contain images of other pairs."""


Recognised = dict[str, list[_Folders]]
"""Pairs of folders by split; the split is "" if the root has none."""


def _parts(root: Path, inside: Callable[[Path], list[_Folders]]) -> Recognised:
    """What `inside` finds in the root or, if nothing, in the folders of its splits."""
    whole = inside(root)
    if whole:
        return {"": whole}
    return {split: found for split in SPLITS if (root / split).is_dir() and (found := inside(root / split))}


def _flat(root: Path, variant: Variant) -> Recognised:
    names: list[tuple[str, str]] = [(variant, "sharp")]
    if variant == "blur":
        names += [("input", "target"), ("lq", "gt"), ("LQ", "GT")]
        names += [("blur_crops", "sharp_crops"), ("input_crops", "target_crops")]

    def inside(folder: Path) -> list[_Folders]:
        there = {path.name for path in folder.iterdir() if path.is_dir()}
        both = [(folder / b, folder / s) for b, s in names if {b, s} <= there]
        if len(both) > 1:
            raise DataError(
                f"{folder} holds several sets of pairs ({both[0][0].name}, {both[1][0].name}); name two folders"
            )
        return [_Folders(b, s) for b, s in both]

    return _parts(root, inside)


def _sequences(folder: Path, blurred: str, sharp: str, key: Callable[[str], str] = str) -> list[_Folders]:
    """One pair of folders per sequence. A sequence that lacks one of them is included, so that `_match` reports it."""
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if not any((path / blurred).is_dir() and (path / sharp).is_dir() for path in below):
        return []
    return [
        _Folders(path / blurred, path / sharp, prefix=f"{path.name}/", key=key)
        for path in below
        if (path / blurred).is_dir() or (path / sharp).is_dir()
    ]


def _gopro(root: Path, variant: Variant) -> Recognised:
    return _parts(root, lambda folder: _sequences(folder, variant, "sharp"))


def _realblur_key(name: str) -> str:
    return re.sub(r"^(blur|gt)_", "", name)


def _realblur(root: Path, variant: Variant) -> Recognised:
    return _parts(root, lambda folder: _sequences(folder, "blur", "gt", _realblur_key)) if variant == "blur" else {}


def _rsblur(root: Path, variant: Variant) -> Recognised:
    scenes = root / "RSBlur" if (root / "RSBlur").is_dir() else root
    shots = [shot for shot in sorted(scenes.glob("*/*")) if (shot / "real_blur").is_dir() and (shot / "gt").is_dir()]
    if variant != "blur" or not shots:
        return {}
    # Each folder contains a single image, whose name is the prefix.
    return {"": [_Folders(s / "real_blur", s / "gt", f"{s.parent.name}/{s.name}", lambda _: "") for s in shots]}


def _hide(root: Path, variant: Variant) -> Recognised:
    if variant != "blur" or not (root / "GT").is_dir():
        return {}
    return {
        split: [_Folders(root / split, root / "GT", key=lambda name: name.rpartition("/")[2], more_sharp=True)]
        for split in SPLITS
        if (root / split).is_dir()
    }


def _reds(root: Path, variant: Variant) -> Recognised:
    both = {split: _Folders(root / f"{split}_blur", root / f"{split}_sharp") for split in SPLITS}
    return {s: [f] for s, f in both.items() if variant == "blur" and f.blurred.is_dir() and f.sharp.is_dir()}


LAYOUTS: dict[str, Callable[[Path, Variant], Recognised]] = {
    "flat pairs": _flat,
    "GoPro": _gopro,
    "RealBlur": _realblur,
    "RSBlur": _rsblur,
    "HIDE": _hide,
    "REDS": _reds,
}


def _choose(root: Path, available: list[str], split: str | None) -> list[str]:
    if split is None or available == [""]:
        return available
    if split in available:
        return [split]
    if split == "test" and "val" in available:
        return ["val"]
    raise DataError(f"{root} has no split {split!r}, only {', '.join(available)}")


def _join(layout: str, root: Path, parts: dict[str, list[Pair]]) -> PairSet:
    if len(parts) == 1:
        [(split, pairs)] = parts.items()
        return _found(layout, root, split or None, pairs)
    pairs = [replace(p, name=f"{split}/{p.name}") for split, part in parts.items() for p in part]
    return _found(layout, root, None, pairs)


def _found(layout: str, root: Path, split: str | None, pairs: list[Pair]) -> PairSet:
    log.info("%s: %s layout, %s, %d pairs", root, layout, f"split {split}" if split else "all of it", len(pairs))
    return PairSet(layout, root, split, tuple(pairs))


def index(folder: Path, key: Callable[[str], str] = str) -> dict[str, Path]:
    """The images below a folder by `key` of their relative path without suffix, or the images that match a template by
    the part in place of its braces; at least one.

    Raises DataError if there is no folder, no image, or two images with the same key.
    """
    if _is_template(folder):
        return _templated(folder)
    if not folder.is_dir():
        raise DataError(absent("folder", folder))
    found: dict[str, Path] = {}
    for path in images.find_images(folder):
        name = key(path.relative_to(folder).with_suffix("").as_posix())
        if name in found:
            raise DataError(f"{path} and {found[name]} are both called {name!r}; rename or remove one of them")
        found[name] = path
    if not found:
        raise DataError(f"{folder} holds no images (looked for {', '.join(sorted(images.SUFFIXES))})")
    return found


def _is_template(path: Path) -> bool:
    return bool(BRACES.search(str(path))) and not path.exists()


def _templated(template: Path) -> dict[str, Path]:
    texts = BRACES.split(str(template))
    pattern = re.compile("(.+)".join(map(re.escape, texts)))
    folder = Path(f"{texts[0]}x").parent
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}, in which {template} would be")
    found: dict[str, Path] = {}
    for path in images.find_images(folder):
        whole = path if template.suffix.lower() in images.SUFFIXES else path.with_suffix("")
        if match := pattern.fullmatch(str(whole)):
            name = "/".join(match.groups())
            if name in found:
                raise DataError(f"{path} and {found[name]} are both {name!r} in {template}; give the suffix, too")
            found[name] = path
    if not found:
        raise DataError(f"no image in {folder} is named like {template}")
    return found


def _match(folders: _Folders) -> list[Pair]:
    blurred, sharp = index(folders.blurred, folders.key), index(folders.sharp, folders.key)
    if folders.blurred != folders.sharp and _is_template(folders.blurred) and _is_template(folders.sharp):
        # a_blur.png is {}.png, too: a file belongs to the template that says more of its name.
        if len(str(folders.blurred)) > len(str(folders.sharp)):
            sharp = {name: path for name, path in sharp.items() if path not in blurred.values()}
        else:
            blurred = {name: path for name, path in blurred.items() if path not in sharp.values()}
    alone = [(path, "sharp", folders.sharp) for name, path in blurred.items() if name not in sharp]
    if not folders.more_sharp:
        alone += [(path, "blurred", folders.blurred) for name, path in sharp.items() if name not in blurred]
    if alone:
        path, partner, where = alone[0]
        more = f" ({len(alone) - 1} more lack theirs)" if len(alone) > 1 else ""
        raise DataError(f"{path} has no {partner} partner of the same name in {where}{more}; add it or remove the file")
    return [Pair(folders.prefix + name, path, sharp[name]) for name, path in blurred.items()]


def _list_files(root: Path) -> dict[str, Path]:
    lists: dict[str, Path] = {}
    for path in sorted(root.glob("*.txt")):
        named = LIST.search(path.name)
        split = named and (named[1] or named[2])
        if split and lists.setdefault(split, path) != path:
            raise DataError(f"{root} holds {lists[split].name} and {path.name}; name one of these files instead")
    return lists


def _layout_of_list(file: Path) -> str:
    return "RSBlur" if file.name.startswith("RSBlur") else "RealBlur"


def _listed(file: Path) -> list[Pair]:
    """The pairs of a list file of RealBlur or RSBlur. Each line contains the paths of a sharp and a blurred image,
    relative to the list's folder."""
    pairs = []
    try:
        if file.stat().st_size > MOST_LIST:
            raise UnicodeError
        lines = file.read_text().splitlines()
    except UnicodeError:
        raise DataError(f"{file} is neither a folder nor a list of pairs") from None
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 2:
            raise DataError(f"{file}, line {number}: expected two paths, sharp and blurred, got {line.strip()!r}")
        sharp, blurred = (file.parent / column for column in columns)
        for path in (sharp, blurred):
            if not path.is_file():
                raise DataError(f"{file}, line {number}: there is no file {path}")
        shot = blurred.parent.parent
        if _layout_of_list(file) == "RSBlur":
            pairs.append(Pair(f"{shot.parent.name}/{shot.name}", blurred, sharp))
        else:
            pairs.append(Pair(f"{shot.name}/{_realblur_key(blurred.stem)}", blurred, sharp))
    if not pairs:
        raise DataError(f"{file} lists no pairs")
    name, times = Counter(pair.name for pair in pairs).most_common(1)[0]
    if times > 1:
        raise DataError(f"{file} lists {name} {times} times; each pair may stand there once")
    return pairs


def _koehler(root: Path) -> list[Pair]:
    """The shots, each with its sharp images in order. Their numbers must have no gaps except one that is known."""
    pairs = []
    for blurred in sorted(root.glob("Blurry*_*.png"), key=_numbers):
        shot = _numbers(blurred)
        if len(shot) != 2:
            raise DataError(f"{blurred} is not called Blurry{{image}}_{{kernel}}.png; rename or remove it")
        image, kernel = shot
        folder = root / f"Image{image}" / f"Kernel{kernel}"
        found = {_numbers(path)[-1]: path for path in folder.glob(f"GroundTruth{image}_{kernel}_*.png")}
        if not found:
            raise DataError(f"{blurred} has no sharp images {folder}/GroundTruth{image}_{kernel}_*.png")
        wanted = set(range(1, max(found) + 1))
        if shot == (1, 3):
            wanted.discard(30)  # excluded by the benchmark's own evaluation
        if missing := sorted(wanted - set(found)):
            raise DataError(
                f"{folder} lacks {len(missing)} images, the first GroundTruth{image}_{kernel}_{missing[0]}.png"
            )
        frames = tuple(found[number] for number in sorted(wanted))
        pairs.append(Pair(f"{image}_{kernel}", blurred, frames[len(frames) // 2], frames))
    return pairs


def _numbers(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.stem))


def index_name(name: str) -> str:
    """The name of a data set's index file."""
    return f"lmfn-index-{name}.csv"


def write_index(file: Path, sets: Sequence[PairSet]) -> None:
    """Write an index of these pairs for `find_pairs`, with paths relative to the file's folder; replaces `file`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\r\n")  # so that it quotes both of these characters
    rows.writerow(COLUMNS)
    folder = file.parent.resolve()
    for found in sets:
        for pair in found:
            for sharp in pair.frames or (pair.sharp,):
                paths = (path.resolve().relative_to(folder).as_posix() for path in (pair.blurred, sharp))
                rows.writerow([found.layout, found.split or "", *map(to_cell, (pair.name, *paths))])
    atomic.write(file, text.getvalue().encode())


def _index_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows below the header, each with its position in the file for messages."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.reader(lines)
        try:
            if tuple(next(rows, ())) != COLUMNS:
                raise DataError(
                    f"{file}, line 1: expected the columns {', '.join(COLUMNS)}; run lmfn data prepare again"
                )
            for row in rows:
                yield f"{file}, line {rows.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file}, line {rows.line_num} is broken ({error}); run lmfn data prepare again") from error


def _indexed(file: Path, split: str | None, variant: Variant) -> PairSet:
    """The pairs of an index. For Koehler, rows with the same name are the frames of one exposure."""
    exposures: dict[str, dict[str, list[tuple[Path, Path]]]] = {}
    layouts: dict[str, str] = {}
    for where, row in _index_rows(file):
        if len(row) != len(COLUMNS):
            raise DataError(f"{where}: expected {len(COLUMNS)} columns, got {len(row)}; run lmfn data prepare again")
        layout, part, name, *paths = *row[:2], *map(from_cell, row[2:])
        if layout.startswith("GoPro") and layout != f"GoPro ({variant})":
            continue
        blurred, sharp = (file.parent / path for path in paths)
        for path in (blurred, sharp):
            if not path.is_file():
                raise DataError(f"{where}: there is no file {path}; put it back, or run lmfn data prepare again")
        if layouts.setdefault(part, layout) != layout:
            raise DataError(f"{where}: a {layout} pair among those of {layouts[part]}; run lmfn data prepare again")
        exposures.setdefault(part, {}).setdefault(name, []).append((blurred, sharp))
    if not exposures:
        raise DataError(f"{file} lists no pairs" + ("" if variant == "blur" else f" of {variant}"))
    parts: dict[str, list[Pair]] = {}
    for part in _choose(file.parent, list(exposures), split):
        parts[part] = []
        for name, both in exposures[part].items():
            blurred, frames = both[0][0], tuple(sharp for _, sharp in both)
            if len(frames) > 1 and layouts[part] != "Koehler":
                raise DataError(f"{file} lists {name} {len(frames)} times; each pair may stand there once")
            several = frames if layouts[part] == "Koehler" else ()
            parts[part].append(Pair(name, blurred, frames[len(frames) // 2], several))
    return _join(layouts[next(iter(parts))], file.parent, parts)
