"""XMP packets as written by Adobe's tools, phones and ExifTool, and malformed ones."""

import pytest

from lmfn.metadata import xmp

AS_ATTRIBUTES = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:ImageWidth="4000" tiff:ImageLength='3000'
 tiff:Orientation="6" exif:PixelXDimension = "4000" exif:PixelYDimension="3000" xmp:Rating="4">
<dc:subject><rdf:Bag><rdf:li>caf\xc3\xa9</rdf:li></rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""
AS_ELEMENTS = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description>
<tiff:ImageWidth>4000</tiff:ImageWidth><tiff:ImageLength>3000</tiff:ImageLength><tiff:Orientation> 6 </tiff:Orientation>
<exif:PixelXDimension>4000</exif:PixelXDimension><exif:PixelYDimension>3000</exif:PixelYDimension>
<xmp:Thumbnails><rdf:Alt><rdf:li><xmpGImg:image>/9j/4AAQ</xmpGImg:image></rdf:li></rdf:Alt></xmp:Thumbnails>
<xmp:Rating>4</xmp:Rating></rdf:Description></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("packet", [AS_ATTRIBUTES, AS_ELEMENTS])
def test_orientation_and_sizes_change_and_nothing_else(packet):
    assert xmp.orientation(packet) == 6
    changed = xmp.upright(packet)
    assert xmp.orientation(changed) == 1
    assert len(changed) == len(packet)
    assert [(a, b) for a, b in zip(packet, changed, strict=True) if a != b] == [(ord("6"), ord("1"))]
    sized = xmp.with_size(packet, 3000, 40_000)
    assert sized == packet.replace(b"3000", b"40000").replace(b"4000", b"3000").replace(b"30000", b"40000")
    assert xmp.with_size(sized, 4000, 3000) == packet


def test_a_turned_image_has_no_thumbnail_of_the_unturned_one():
    assert b"/9j/" in xmp.upright(AS_ELEMENTS)
    turned = xmp.upright(AS_ELEMENTS, turned=True)
    assert b"humbnail" not in turned
    assert b"<xmp:Rating>4</xmp:Rating>" in turned


def test_packets_without_an_orientation():
    for packet in (b"", b"<x/>", b'tiff:Orientation=""', b"tiff:Orientation='x'", b"xtiff:Orientation='6'"):
        assert xmp.orientation(packet) is None
        assert xmp.upright(packet, turned=True) == packet
    wide = AS_ATTRIBUTES.decode().encode("utf-16")
    assert xmp.orientation(wide) is None
    assert xmp.with_size(xmp.upright(wide, turned=True), 1, 1) == wide


ELSEWHERE = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"
 hdrgm:Version="1.0" xmp:Rating="4" GCamera:MotionPhoto="1" GCamera:BurstID='7' xmpNote:HasExtendedXMP = '9F'>
<Container:Directory><rdf:Seq>
<rdf:li><Container:Item Item:Mime="image/jpeg" Item:Length="1"/></rdf:li>
</rdf:Seq></Container:Directory><GDepth:Data/><HDRGainMap:HDRGainMapVersion>131072</HDRGainMap:HDRGainMapVersion>
<dc:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""


def test_what_describes_other_pictures_goes():
    assert (
        xmp.on_its_own(ELSEWHERE).split()
        == (
            b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"
        xmp:Rating="4" GCamera:BurstID='7'>
        <dc:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""
        ).split()
    )
    for packet in (AS_ATTRIBUTES, AS_ELEMENTS, b"", b"<GDepth:a>" * 9, b"<GDepth:a ", b"<GDepth:a>x</GDepth:b>"):
        assert xmp.on_its_own(packet) == packet
