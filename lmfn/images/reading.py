"""Read image files, and find them in folders."""

import math
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import OpenImageIO as oiio  # noqa: N813 (the name it goes by in its own documentation)

from lmfn import memory, metadata
from lmfn.absent import absent
from lmfn.images import heif
from lmfn.images.formats import REMEDIES, SUFFIXES, WRITABLE, identify
from lmfn.images.photo import ImageError, ImageWarning, Photo, first_line
from lmfn.metadata import Blocks, exif, jpeg, png, tiff, webp, xmp
from lmfn.scratch import Pixels, StoredPixels

RGB_LIKE = range(7)  # TIFF's photometric interpretations that OpenImageIO converts to gray or RGB; not CIELAB
WHITE_IS_ZERO = 0  # that of gray with white as 0
PICTURES = "the gain map, depth map or film"
NO_PAGE = 1 | 4  # bits of TIFF's NewSubfileType: smaller copies (thumbnails) and masks
MOST_COPIES = 64  # thumbnails and masks of a TIFF after which no further page is searched for; there may be millions
TAKEN_FOR_GRANTED = 2**27  # bytes up to which the free memory is not checked, since that takes a millisecond
LARGE = 2**26  # bytes of samples above which pixels may be in a file instead of in memory
AT_ONCE = 2**22  # bytes of samples that are decoded into a file at a time
PROFILES = {b"GRAY": (1, 2), b"RGB ": (3, 4)}  # numbers of channels that fit ICC profiles of these colour spaces
SAMPLES = {"uint8": "uint8", "uint16": "uint16", "half": "float", "float": "float"}
DTYPES = {"uint8": np.uint8, "uint16": np.uint16, "float": np.float32}

# Attributes that describe the layout of the file read or were derived from its header, and would be wrong in the file
# written. They are patterns for OpenImageIO, which does not support alternatives. Colours are in `Blocks`.
LAYOUT = (
    "oiio:BitsPerSample", "oiio:RowsPerChunk", "oiio:ColorSpace", "oiio:Gamma", "oiio:Movie", "CICP", "tiff:.*",
    "jpeg:.*", "webp:.*", "png:.*", "compression", "planarconfig", "PixelAspectRatio", "Exif:YCbCrSubsampling",
    "Exif:Pixel.Dimension", "ICCProfile.*", "thumbnail_.*",
)  # fmt: skip


def read_rgb(path: str | Path) -> np.ndarray:
    """The image as uint8 `[H, W, 3]`, upright; gray is repeated, alpha dropped, 16 bits and float rounded to 8.

    Raises ImageError, also for several images in one file.
    """
    pixels = cast(np.ndarray, _open(Path(path)).pixels(8))
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif pixels.dtype == np.float32:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.shape[2] < 3:
        return np.repeat(pixels[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the upright image, from the file's header alone. Raises ImageError."""
    image = _open(Path(path))
    size = image.spec.height, image.spec.width
    return size[::-1] if image.orientation > 4 else size


def read(path: str | Path, *, first: bool = False, whole_numbers: bool = False, stored: bool = False) -> Photo:
    """The image with the data of its file that must be preserved.

    Pixels are float32 in [0, 1]; with `whole_numbers`, samples of 8 and 16 bits stay uint8 and uint16. With `stored`
    (and `whole_numbers`), those of an image above 64 MB are written to a scratch file while they are decoded, if there
    is a folder with room for it; they are `lmfn.scratch.StoredPixels`. EXIF and XMP are those of the file, with
    Orientation 1; the thumbnail of a rotated image is dropped. For broken EXIF, and for TIFF, the metadata is what
    OpenImageIO reads. Gain maps, depth maps and films appended to a JPEG are dropped, together
    with their XMP, and so are films in a HEIC or AVIF, XMP beyond its first 64 kB in a JPEG, and a profile for other
    colours than those of the pixels (CMYK), and the georeference and layers of a TIFF, each with an ImageWarning.

    Raises ImageError, also for float samples outside [0, 1], and for a file with several images (an animation or pages)
    unless only the `first` is requested.
    """
    return _open(Path(path), several=first).photo(whole_numbers, stored)


def read_frames(path: str | Path, *, whole_numbers: bool = False, stored: bool = False) -> Iterator[Photo]:
    """Each page of a TIFF, each frame of an animated WebP (composed to a full picture), or the only image of another
    file, as `read` returns it.

    Raises ImageError, also for animations in other formats.
    """
    image = _open(Path(path), several=True)
    if not image.several:
        yield image.photo(whole_numbers, stored)
    else:
        for frame in image.frames():
            yield frame.photo(whole_numbers, stored)


def find_images(folder: str | Path) -> list[Path]:
    """All files below the folder with one of `SUFFIXES`, sorted, without hidden files and folders.

    Raises ImageError if the folder is missing, or if it or a folder in it cannot be read.
    """
    tree = walk(folder)
    if tree.unreadable:
        raise ImageError(tree.unreadable[0][1])
    return tree.images


class Tree(NamedTuple):
    """The contents of a folder and all folders below it, without hidden files and folders."""

    images: list[Path]
    """Files with one of `SUFFIXES`, sorted."""
    others: list[Path]
    """Other files, and links to folders, which are not followed; sorted."""
    unreadable: list[tuple[Path, str]]
    """Folders that cannot be read, each with a message that names it and the reason."""


def walk(folder: str | Path) -> Tree:
    """List the folder and all folders below it. Unreadable folders are part of the result."""
    tree = Tree([], [], [])

    def fail(error: OSError) -> None:
        where = Path(error.filename)
        tree.unreadable.append((where, f"{where}: the folder cannot be read ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        tree.others.extend(path for name in folders if (path := Path(parent, name)).is_symlink())
        for name in files:
            if not name.startswith("."):
                is_image = Path(name).suffix.lower() in SUFFIXES
                (tree.images if is_image else tree.others).append(Path(parent, name))
    return Tree(sorted(tree.images), sorted(tree.others), tree.unreadable)


@dataclass
class _Image:
    """An image in a file of which the header has been read."""

    path: Path
    form: str
    spec: oiio.ImageSpec
    blocks: Blocks
    orientation: int
    """EXIF's Orientation, 1 to 8; above 4, height and width are swapped."""
    several: str = ""
    """A description of the file if it contains several images."""
    duration: int = 0
    loops: int = 0

    def decode(self, samples: str, rows: int) -> Iterator[np.ndarray]:
        """The samples in this type of OpenImageIO, `[rows, width, channels]`, from top to bottom; the whole image at
        once if its format does not allow less."""
        raise NotImplementedError

    def held(self) -> int:
        """Bytes per sample that the decoder holds of the whole image, even if it gives few rows at a time."""
        return self.spec.format.size()

    def frames(self) -> Iterator["_Image"]:
        """All images of the file."""
        raise ImageError(
            f"{self.path}: {self.several}, of which only the first can be read; convert it to WebP or TIFF"
        )

    def more(self) -> list[str]:
        """What the file contains beside the picture and its blocks, which is not preserved."""
        return []

    def photo(self, whole_numbers: bool, stored: bool = False) -> Photo:
        pixels = self.pixels(0 if whole_numbers else 8, stored)
        bits = 8 * pixels.dtype.itemsize
        if bits < 32 and not whole_numbers:
            pixels = cast(np.ndarray, pixels).astype(np.float32)
            pixels /= np.float32(2**bits - 1)
        attributes = oiio.ImageSpec(self.spec)
        for pattern in LAYOUT:
            attributes.erase_attribute(pattern)
        if pixels.shape[2] in (2, 4):  # in a TIFF without this attribute, colours are premultiplied with alpha
            attributes.attribute("oiio:UnassociatedAlpha", self.spec.get_int_attribute("oiio:UnassociatedAlpha", 0))
        if "Orientation" in attributes:
            attributes.attribute("Orientation", 1)
        for more in self.more():
            message = f"{self.path}: {more} in the file is not kept"
            warnings.warn(message, ImageWarning, stacklevel=3)
        blocks = self._upright_blocks(pixels.shape[2])
        if (icc := self.blocks.icc) and not blocks.icc:
            space = icc[16:20].decode("ascii", "replace").strip()
            message = (
                f"{self.path}: its colour profile is for {space}, and the pixels are "
                f"{'RGB' if pixels.shape[2] > 2 else 'gray'}; it is not kept, and colours may look different"
            )
            warnings.warn(message, ImageWarning, stacklevel=3)
        return Photo(pixels, bits, attributes, blocks, self.duration, self.loops)

    def _upright_blocks(self, channels: int) -> Blocks:
        turned = self.orientation != 1
        block, packet, icc = self.blocks.exif, self.blocks.xmp, self.blocks.icc
        # A profile for the colours before conversion to RGB does not apply to the converted ones.
        return replace(
            self.blocks,
            exif=None if block is None else exif.upright(block, turned),
            xmp=None if packet is None else xmp.on_its_own(xmp.upright(packet, turned)),
            icc=icc if icc is not None and channels in PROFILES.get(icc[16:20], ()) else None,
        )

    def pixels(self, more: int, stored: bool = False) -> Pixels:
        """The samples as in the file, `[H, W, C]` uint8, uint16 or float32 in [0, 1], upright; `stored` as in `read`.

        Raises ImageError, also if there is not enough memory for them and for `more` additional bytes per sample.
        """
        spec = self.spec
        colours = spec.nchannels - (spec.alpha_channel == spec.nchannels - 1)
        if colours not in (1, 3):
            raise ImageError(
                f"{self.path}: {spec.nchannels} channels {spec.channelnames}; "
                "gray or RGB, with or without alpha, can be read"
            )
        if spec.get_int_attribute("tiff:PhotometricInterpretation", 1) not in RGB_LIKE:
            colour_space = spec.get_string_attribute("tiff:ColorSpace")
            raise ImageError(f"{self.path}: colours in {colour_space}; convert it to RGB")
        samples = SAMPLES.get(str(spec.format))
        if samples is None:
            raise ImageError(f"{self.path}: samples of type {spec.format}; 8 or 16 bits or float can be read")
        shape, dtype = (spec.height, spec.width, spec.nchannels), DTYPES[samples]
        folder = None
        if stored and (size := math.prod(shape) * np.dtype(dtype).itemsize) > LARGE:
            with suppress(MemoryError):
                folder = memory.scratch_folder(2 * size)  # the result is as large
        turned = self.orientation > 4
        whole = folder is None or turned
        needed = math.prod(shape) * ((spec.format.size() if whole else self.held()) + more)
        if needed > TAKEN_FOR_GRANTED and needed > (available := memory.available()):
            raise ImageError(
                f"{self.path}: {spec.width:,} x {spec.height:,} pixels need {needed / 1e9:.1f} GB, and "
                f"{available / 1e9:.1f} GB are free"
            )
        pixels: Pixels = np.empty(0) if whole else StoredPixels(cast(Path, folder), shape, dtype)
        last = 0
        for part in self.decode(samples, spec.height if whole else max(1, AT_ONCE // (spec.width * spec.nchannels))):
            if samples == "float" and not (part.min() >= 0 and part.max() <= 1):
                raise ImageError(f"{self.path}: float samples outside [0, 1]; scale them into [0, 1] first")
            first, last = last, last + len(part)
            across = part[:, ::-1] if self.orientation in (2, 3, 7, 8) else part
            down = across[::-1] if (from_below := self.orientation in (3, 4, 6, 7)) else across
            if whole:
                pixels = down
            else:
                first = spec.height - last if from_below else first
                pixels[first : first + len(down)] = down
        if turned:
            pixels = cast(np.ndarray, pixels).swapaxes(0, 1)
        if isinstance(pixels, StoredPixels):
            return pixels
        return np.ascontiguousarray(pixels) if folder is None else StoredPixels.of(pixels, folder)


@dataclass
class _OpenImageIO(_Image):
    """An image read by OpenImageIO."""

    reader: oiio.ImageInput = field(kw_only=True)
    number: int = 0
    """Index of the image in the file."""

    def decode(self, samples: str, rows: int) -> Iterator[np.ndarray]:
        if self.form == "PNG":
            with self.path.open("rb") as file:
                _check_png(self.path, file, pixels=True)
        spec = self.spec
        if spec.tile_width:
            rows = -(-rows // spec.tile_height) * spec.tile_height
        left, right, top, bottom = spec.x, spec.x + spec.width, spec.y, spec.y + spec.height
        for first in range(top, bottom, rows):
            last, channels = min(first + rows, bottom), spec.nchannels
            if rows >= spec.height:
                part = self.reader.read_image(self.number, 0, 0, channels, samples)
            elif spec.tile_width:
                across = left, right, first, last
                part = self.reader.read_tiles(self.number, 0, *across, spec.z, spec.z + 1, 0, channels, samples)
            else:
                part = self.reader.read_scanlines(self.number, 0, first, last, spec.z, 0, channels, samples)
            # For a truncated JPEG there are pixels, gray where data is missing, and also an error.
            problem = self.reader.geterror()
            if part is None or problem:
                raise ImageError(f"{self.path}: broken or cut short ({first_line(problem)})")
            yield np.asarray(self._black_is_zero(part))

    def _black_is_zero(self, part: np.ndarray) -> np.ndarray:
        """Undo the negative of a TIFF; OpenImageIO does so in 8 bits alone, and there to alpha, too."""
        if self.spec.get_int_attribute("tiff:PhotometricInterpretation", 1) == WHITE_IS_ZERO:
            negative = part[:, :, 1:] if part.dtype == np.uint8 else part[:, :, :1]
            np.subtract(1 if part.dtype.kind == "f" else np.iinfo(part.dtype).max, negative, out=negative)
        return part

    def held(self) -> int:
        with self.path.open("rb") as file:
            if self.form == "JPEG":
                return 2 * jpeg.is_progressive(file)  # coefficients
            return super().held() * (self.form == "WebP" or (self.form == "PNG" and png.is_interlaced(file)))

    def more(self) -> list[str]:
        if self.form not in ("JPEG", "TIFF"):
            return []
        with self.path.open("rb") as file:
            if self.form == "TIFF":
                return tiff.not_kept(file)
            parts = {PICTURES: jpeg.has_more(file), "the extended part of XMP": jpeg.has_extended_xmp(file)}
        return [name for name, is_there in parts.items() if is_there]

    def frames(self) -> Iterator[_Image]:
        if self.form != "TIFF":
            yield from super().frames()
        for number in _pages(self.reader):
            self.reader.seek_subimage(number, 0)
            spec = self.reader.spec()
            blocks = self.blocks if number == 0 else Blocks(icc=_profile(spec))
            yield replace(self, number=number, spec=spec, blocks=blocks, orientation=_orientation(spec, blocks))


@dataclass
class _Animation(_Image):
    """An animated WebP. OpenImageIO decodes its parts; composing them is done here, since OpenImageIO gets alpha
    wrong."""

    canvas: np.ndarray | None = None
    """The composed frame; the first one if None."""

    def decode(self, samples: str, rows: int) -> Iterator[np.ndarray]:  # noqa: ARG002 (always uint8)
        yield next(self._canvases())[1] if self.canvas is None else self.canvas

    def frames(self) -> Iterator[_Image]:
        with self.path.open("rb") as file:
            loops = webp.loops(file)
        for duration, canvas in self._canvases():
            yield replace(self, canvas=canvas, duration=duration, loops=loops)

    def _canvases(self) -> Iterator[tuple[int, np.ndarray]]:
        """Duration and pixels of each frame."""
        canvas = np.zeros((self.spec.height, self.spec.width, self.spec.nchannels), np.uint8)
        with self.path.open("rb") as file:
            for frame in webp.frames(file):
                part = self._part(frame)
                height, width, channels = part.shape
                place = canvas[frame.top : frame.top + height, frame.left : frame.left + width]
                if place.shape[:2] != (height, width):
                    raise ImageError(f"{self.path}: broken (a frame is larger than the animation)")
                place[:, :, :channels] = _over(part, place) if frame.blended else part
                place[:, :, channels:] = 255
                yield frame.duration, canvas.copy()
                if frame.removed:
                    place[:] = 0

    def _part(self, frame: webp.Frame) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            still = Path(folder, "still.webp")
            still.write_bytes(frame.still)
            try:
                opened = _open(still)
                return next(opened.decode("uint8", opened.spec.height))[:, :, : self.spec.nchannels]
            except ImageError as error:
                raise ImageError(f"{self.path}: broken (in one of its frames)") from error


@dataclass
class _Heif(_Image):
    """An image read by pillow-heif or Pillow."""

    picture: heif.Picture = field(kw_only=True)

    def more(self) -> list[str]:
        return [PICTURES] if self.picture.more else []

    def decode(self, samples: str, rows: int) -> Iterator[np.ndarray]:  # noqa: ARG002 (the type is that of the file)
        try:
            yield self.picture.decode()
        except Exception as error:
            raise ImageError(f"{self.path}: broken or cut short ({first_line(str(error))})") from error


def _open(path: Path, several: bool = False) -> _Image:
    """Read the header. Raises ImageError, also for a file with several images unless `several` is set."""
    try:
        str(path).encode()
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ImageError(absent("file", path))
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeEncodeError as error:
        raise ImageError(f"{str(path)!r}: the name is not valid UTF-8; rename the file") from error
    if not head:
        raise ImageError(f"{path}: the file is empty")
    form = identify(head)
    if form is None:
        raise ImageError(f"{path}: not an image, or a broken one")
    if form in WRITABLE.values():
        image: _Image = _open_with_openimageio(path, form)
    elif form in ("HEIC", "AVIF") and heif.AVAILABLE:
        image = _open_heif(path, form)
    else:
        suffix = path.suffix.lower()
        instead = f", not {WRITABLE[suffix]} as its name says" if suffix in WRITABLE else ""
        raise ImageError(f"{path}: {form}{instead}; {REMEDIES.get(form, 'convert it to PNG, JPEG or TIFF')}")
    if image.several and not several:
        raise ImageError(f"{path}: {image.several}; take all or the first (lmfn deblur --frames all, --frames first)")
    return image


def _open_with_openimageio(path: Path, form: str) -> _Image:
    with path.open("rb") as file:
        if form == "PNG":
            _check_png(path, file, pixels=False)
        elif not _is_whole(file, form, path.stat().st_size):
            raise ImageError(f"{path}: the file is cut short")
        blocks = metadata.extract(file)
        frames = {"PNG": png.frames, "WebP": webp.count}[form](file) if form in ("PNG", "WebP") else 1
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    reader = oiio.ImageInput.open(str(path), config)
    if reader is None:
        raise ImageError(f"{path}: not an image, or a broken one ({first_line(oiio.geterror())})")
    spec = reader.spec()
    several = f"an animated {form} of {frames} frames" if frames > 1 else ""
    if form == "TIFF":
        pages = list(islice(_pages(reader), 2))
        if pages[:1] != [0]:
            raise ImageError(f"{path}: its first image is a small copy or a mask; {REMEDIES['camera raw']}")
        reader.seek_subimage(0, 0)
        several = "a TIFF of several pages" if len(pages) > 1 else ""
    if form == "TIFF":
        blocks = replace(blocks, icc=_profile(spec))
    orientation = _orientation(spec, blocks)
    if form == "WebP" and frames:
        return _Animation(path, form, spec, blocks, orientation, several)
    return _OpenImageIO(path, form, spec, blocks, orientation, several, reader=reader)


def _open_heif(path: Path, form: str) -> _Heif:
    # For broken files these libraries raise anything from SyntaxError to EOFError.
    try:
        picture = heif.open_heic(path) if form == "HEIC" else heif.open_avif(path)
    except Exception as error:
        raise ImageError(f"{path}: {form}, not readable or broken ({first_line(str(error))})") from error
    spec = oiio.ImageSpec(picture.width, picture.height, picture.channels, f"uint{picture.bits}")
    if picture.channels in (2, 4):
        spec.alpha_channel = picture.channels - 1
        spec.attribute("oiio:UnassociatedAlpha", 1)
    several = f"{form} of {picture.count} images" if picture.count > 1 else ""
    return _Heif(path, form, spec, picture.blocks, picture.orientation, several, picture=picture)


def _is_whole(file: BinaryIO, form: str, size: int) -> bool:
    """Whether the file is complete, determined without decoding, so that a whole data set can be checked beforehand."""
    if form == "WebP":  # RIFF: the length of what follows
        file.seek(4)
        return int.from_bytes(file.read(4), "little") <= size - 8
    return form != "JPEG" or jpeg.end(file) is not None


def _check_png(path: Path, file: BinaryIO, pixels: bool) -> None:
    try:
        png.check(file, pixels)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error


def _over(part: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The part, uint8 `[H, W, C]`, composed over `place`."""
    if part.shape[2] == 3:
        return part
    above, below = (x.astype(np.float32) / 255 for x in (part, place))
    through = below[:, :, 3:] * (1 - above[:, :, 3:])
    alpha = above[:, :, 3:] + through
    colours = (above[:, :, :3] * above[:, :, 3:] + below[:, :, :3] * through) / np.maximum(alpha, 1 / 255)
    blended: np.ndarray = np.rint(np.dstack([colours, alpha]) * 255).astype(np.uint8)
    return blended


def _pages(reader: oiio.ImageInput) -> Iterator[int]:
    """The indices of the images that are pages or frames."""
    misses = 0
    for number in count():
        if misses == MOST_COPIES or not reader.seek_subimage(number, 0):
            break
        if reader.spec().get_int_attribute("tiff:subfiletype", 0) & NO_PAGE:
            misses += 1
        else:
            yield number
    reader.geterror()  # clears the error; reaching the last image is not a fault of the file


def _profile(spec: oiio.ImageSpec) -> bytes | None:
    """The ICC profile of a page of a TIFF."""
    return np.asarray(spec["ICCProfile"]).tobytes() if "ICCProfile" in spec else None


def _orientation(spec: oiio.ImageSpec, blocks: Blocks) -> int:
    """EXIF's Orientation, or XMP's if EXIF has none; 1 if neither is valid."""
    found = exif.orientation(blocks.exif) if blocks.exif is not None else None
    if found is None and "Orientation" in spec:
        found = int(spec.get_int_attribute("Orientation", 1))
    if found is None and blocks.xmp is not None:
        found = xmp.orientation(blocks.xmp)
    return found if found is not None and 1 <= found <= 8 else 1
