"""XMP packets: which way up the image is, and what must change in them when that changes.

A packet is XML, in which `tiff:Orientation` and its like are attributes or elements. They are changed in place, so that
everything else stays byte for byte. A packet in UTF-16, which hardly any writer makes, stays as it is.
"""

import re

# What describes pictures, films and sounds behind the picture or in further blocks: gain maps of HDR photographs, depth
# maps, the films of moving photographs, and the rest of a packet too long for one JPEG segment.
ELSEWHERE = (
    rb"(?:hdrgm:\w+|HDRGainMap:\w+|GCamera:(?:MotionPhoto|MicroVideo)\w*|G?Container:\w+|GDepth:\w+|GImage:\w+"
    rb"|GAudio:\w+|xmpNote:HasExtendedXMP)"
)
ATTRIBUTES = re.compile(rb"\s" + ELSEWHERE + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')")
ELEMENTS = re.compile(rb"<(" + ELSEWHERE + rb")(?=[\s/>])")
THUMBNAILS = re.compile(rb"<(xmp:Thumbnails)(?=[\s/>])")


def orientation(packet: bytes) -> int | None:
    """`tiff:Orientation`; None where there is none."""
    found = _number(b"tiff:Orientation").search(packet)
    return int(found[2]) if found else None


def upright(packet: bytes, turned: bool = False) -> bytes:
    """The packet with 1 (upright) for `tiff:Orientation`; without thumbnails where the image was turned."""
    packet = _number(b"tiff:Orientation").sub(rb"\g<1>1", packet)
    return _without(packet, THUMBNAILS) if turned else packet


def with_size(packet: bytes, width: int, height: int) -> bytes:
    """The packet with this size of the image wherever it names one."""
    for name, value in (
        (b"tiff:ImageWidth", width),
        (b"tiff:ImageLength", height),
        (b"exif:PixelXDimension", width),
        (b"exif:PixelYDimension", height),
    ):
        packet = _number(name).sub(rb"\g<1>%d" % value, packet)
    return packet


def on_its_own(packet: bytes) -> bytes:
    """The packet without what it says of pictures, films and blocks that do not go with it."""
    return _without(ATTRIBUTES.sub(b"", packet), ELEMENTS)


def _without(packet: bytes, elements: re.Pattern[bytes]) -> bytes:
    """The packet without the elements that begin so; as it is from the first on that has no end."""
    pieces, position = [], 0
    for found in elements.finditer(packet):
        if found.start() < position:  # within one that is left out
            continue
        last = b">"
        end = packet.find(last, found.end())
        if end >= 0 and packet[end - 1 : end] != b"/":
            last = b"</" + found[1] + b">"
            end = packet.find(last, end)
        if end < 0:
            break
        pieces.append(packet[position : found.start()])
        position = end + len(last)
    return b"".join([*pieces, packet[position:]])


def _number(name: bytes) -> re.Pattern[bytes]:
    """An attribute or element of this name whose value is a number of up to ten digits."""
    return re.compile(rb"(\b" + name + rb"(?:\s*=\s*[\"']|>)\s*)(\d{1,10})(?!\d)")
