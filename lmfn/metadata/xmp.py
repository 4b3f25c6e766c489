"""XMP packets: read the orientation, and update the packet when the image is rotated or resized.

A packet is XML, in which fields such as `tiff:Orientation` are attributes or elements. They are changed in place, so
that everything else is kept byte for byte. A packet in UTF-16, which hardly any writer uses, is kept unchanged.
"""

import re

# Descriptions of pictures, videos and sounds that follow the picture or are in further blocks: gain maps of HDR
# photographs, depth maps, videos of motion photos, and the rest of a packet too long for one JPEG segment.
ELSEWHERE = (
    rb"(?:hdrgm:\w+|HDRGainMap:\w+|GCamera:(?:MotionPhoto|MicroVideo)\w*|G?Container:\w+|GDepth:\w+|GImage:\w+"
    rb"|GAudio:\w+|xmpNote:HasExtendedXMP)"
)
ATTRIBUTES = re.compile(rb"\s" + ELSEWHERE + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')")
ELEMENTS = re.compile(rb"<(" + ELSEWHERE + rb")(?=[\s/>])")
THUMBNAILS = re.compile(rb"<(xmp:Thumbnails)(?=[\s/>])")


def orientation(packet: bytes) -> int | None:
    """`tiff:Orientation`; None if absent."""
    found = _number(b"tiff:Orientation").search(packet)
    return int(found[2]) if found else None


def upright(packet: bytes, turned: bool = False) -> bytes:
    """The packet with 1 (upright) for `tiff:Orientation`; without thumbnails if the image was rotated."""
    packet = _number(b"tiff:Orientation").sub(rb"\g<1>1", packet)
    return _without(packet, THUMBNAILS) if turned else packet


def with_size(packet: bytes, width: int, height: int) -> bytes:
    """The packet with this image size in all its size fields."""
    for name, value in (
        (b"tiff:ImageWidth", width),
        (b"tiff:ImageLength", height),
        (b"exif:PixelXDimension", width),
        (b"exif:PixelYDimension", height),
    ):
        packet = _number(name).sub(rb"\g<1>%d" % value, packet)
    return packet


def on_its_own(packet: bytes) -> bytes:
    """The packet without descriptions of pictures, videos and blocks that are not kept."""
    return _without(ATTRIBUTES.sub(b"", packet), ELEMENTS)


def _without(packet: bytes, elements: re.Pattern[bytes]) -> bytes:
    """The packet without the elements that start in this way; unchanged from the first unterminated one."""
    pieces, position = [], 0
    for found in elements.finditer(packet):
        if found.start() < position:  # within a removed one
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
