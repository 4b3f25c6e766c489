// What a photograph's file says beside its pixels, read and written as bytes: EXIF, the colour profile, the size.

const ascii = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const startsWith = (bytes, text) => ascii(bytes, 0, text.length) === text;

const EXIF = "Exif\0\0", ICC = "ICC_PROFILE\0", XMP = "http://ns.adobe.com/xap/1.0/\0";
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const COLOURS = ["iCCP", "sRGB", "gAMA", "cHRM", "cICP", "mDCV", "cLLI"]; // PNG's chunks that are kept as they are
const TEXTS = "texts (XMP among them)";

/** The format by the file's first bytes, whatever its name: null for what is no image that is known here. */
export function identify(bytes) {
  const head = ascii(bytes, 0, 16);
  if (head.startsWith("\xff\xd8\xff")) return "JPEG";
  if (PNG.every((byte, i) => bytes[i] === byte)) return "PNG";
  if (head.startsWith("RIFF") && head.slice(8, 12) === "WEBP") return "WebP";
  if (head.startsWith("GIF8")) return "GIF";
  if (head.startsWith("BM")) return "BMP";
  if (head.startsWith("II*\0") || head.startsWith("MM\0*") || head.startsWith("FUJIFILM")) return "TIFF or camera raw";
  if (head.slice(4, 8) === "ftyp") {
    const brands = ascii(bytes, 8, Math.min(64, view(bytes).getUint32(0)));
    if (/avi[fs]/.test(brands)) return "AVIF";
    if (/hei[cxms]|hev[cx]|mif1|msf1/.test(brands)) return "HEIC";
    if (brands.startsWith("crx ")) return "TIFF or camera raw";
  }
  return null;
}

/**
 * What the file holds beside its pixels: `width`, `height` (as stored; undefined where the header is not read here),
 * `exif` (a block without its name), `icc` (ready for the format that it will be saved in: JPEG's segments, PNG's
 * chunks), `density` (PNG's chunk), `srgb` (whether the colours have to become sRGB, because their profile cannot be
 * carried over), `grey`, `orientation`, `neutral` (the file with that orientation undone, for browsers to decode),
 * `lost` (in words, what a saved file will not have).
 */
export async function read(bytes, format) {
  const found = { exif: null, icc: [], density: [], srgb: false, grey: false, orientation: 1, neutral: bytes, lost: [] };
  try {
    if (format === "JPEG") readJpeg(bytes, found);
    else if (format === "PNG") readPng(bytes, found);
    else if (format === "WebP") await readWebp(bytes, found);
    else {
      found.srgb = true;
      found.lost.push("EXIF, if there was any");
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a file that is cut short: its decoder will say so
  }
  return found;
}

/**
 * The encoded image with the EXIF block (made true of an upright image of this size), and with what the photograph said
 * of its colours in place of what the browser says of its canvas.
 */
export function write(encoded, format, { exif, icc, density, srgb, orientation }, width, height) {
  const block = exif && upright(exif, orientation !== 1, width, height);
  const isJpeg = format === "JPEG", header = isJpeg ? 2 : 8 + 25; // PNG's signature and IHDR
  const named = !block ? [] : isJpeg ? [segment(0xe1, join([latin(EXIF), block]))] : [chunk("eXIf", block)];
  const isOfColours = isJpeg
    ? ({ marker, body }) => marker === 0xe2 && startsWith(body, ICC)
    : ({ name }) => COLOURS.includes(name);
  const replaced = srgb ? [] : [...(isJpeg ? segments : chunks)(encoded)].filter(isOfColours);
  const kept = [];
  let at = header;
  for (const { start, whole } of replaced) {
    kept.push(encoded.subarray(at, start));
    at = start + whole.length;
  }
  return join([encoded.subarray(0, header), ...named, ...icc, ...density, ...kept, encoded.subarray(at)]);
}

// JPEG

function* segments(bytes) {
  const data = view(bytes);
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff; ) {
    const marker = bytes[at + 1];
    if (marker === 0xff) at += 1; // a byte that fills up
    else if (marker === 0xda) return;
    else {
      const end = at + 2 + data.getUint16(at + 2);
      yield { marker, start: at, body: bytes.subarray(at + 4, end), whole: bytes.subarray(at, end) };
      at = end;
    }
  }
}

function segment(marker, body) {
  return join([Uint8Array.of(0xff, marker, (body.length + 2) >> 8, (body.length + 2) & 255), body]);
}

function readJpeg(bytes, found) {
  let colours = 3;
  const profile = [];
  for (const { marker, start, body, whole } of segments(bytes)) {
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) {
      [found.height, found.width] = [view(body).getUint16(1), view(body).getUint16(3)];
      colours = body[5];
      found.grey = colours === 1;
    } else if (marker === 0xe1 && startsWith(body, EXIF) && !found.exif) {
      takeExif(body.subarray(EXIF.length), found, start + 4 + EXIF.length, bytes);
    } else if (marker === 0xe1 && startsWith(body, XMP)) {
      found.lost.push("XMP");
    } else if (marker === 0xe2 && startsWith(body, ICC)) {
      profile.push({ body, whole });
    } else if (marker === 0xe2 && startsWith(body, "MPF\0")) {
      found.lost.push("the further pictures in the file (an HDR gain map, a depth map, a preview)");
    } else if (marker === 0xed) {
      found.lost.push("IPTC");
    }
  }
  // A profile of gray or CMYK says nothing of the RGB that the page saves.
  if (profile.length && ascii(profile[0].body, 30, 34) === "RGB ") found.icc = profile.map(({ whole }) => whole);
  else found.srgb = profile.length > 0 || colours === 4;
  if (found.srgb) found.lost.push("the colour profile, which is not one of RGB (colours become sRGB)");
}

// PNG

function* chunks(bytes) {
  const data = view(bytes);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const end = at + 12 + data.getUint32(at);
    yield { name: ascii(bytes, at + 4, at + 8), start: at, body: bytes.subarray(at + 8, end - 4), whole: bytes.subarray(at, end) };
    at = end;
  }
}

function chunk(name, body) {
  const named = join([latin(name), body]);
  return join([number(body.length), named, number(crc(named))]);
}

function readPng(bytes, found) {
  for (const { name, start, body, whole } of chunks(bytes)) {
    if (name === "IHDR") {
      [found.width, found.height] = [view(body).getUint32(0), view(body).getUint32(4)];
      if (body[8] === 16) found.lost.push("16 bits per value (it is saved with 8)");
      found.grey = body[9] === 0 || body[9] === 4;
    } else if (name === "iCCP" && found.grey) {
      found.srgb = true;
      found.lost.push("the colour profile, which is not one of RGB (colours become sRGB)");
    } else if (COLOURS.includes(name)) found.icc.push(whole);
    else if (name === "pHYs") found.density = [whole];
    else if (name === "eXIf") {
      takeExif(body, found, start + 8, bytes);
      if (found.neutral !== bytes) {
        const end = start + 8 + body.length;
        found.neutral.set(number(crc(found.neutral.subarray(start + 4, end))), end);
      }
    } else if (name === "acTL") found.lost.push("the animation (this is its first picture)");
    else if (/^[tiz]TXt$/.test(name) && !found.lost.includes(TEXTS)) found.lost.push(TEXTS);
  }
  if (found.srgb) found.icc = [];
}

// WebP, which is saved as PNG

async function readWebp(bytes, found) {
  const data = view(bytes);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const name = ascii(bytes, at, at + 4), length = data.getUint32(at + 4, true);
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (name === "VP8X") {
      const three = (i) => (body[i] | (body[i + 1] << 8) | (body[i + 2] << 16)) + 1;
      [found.width, found.height] = [three(4), three(7)];
    } else if (name === "VP8 ") {
      found.width ??= view(body).getUint16(6, true) & 0x3fff;
      found.height ??= view(body).getUint16(8, true) & 0x3fff;
    } else if (name === "VP8L") {
      const bits = view(body).getUint32(1, true);
      found.width ??= (bits & 0x3fff) + 1;
      found.height ??= ((bits >> 14) & 0x3fff) + 1;
    } else if (name === "ICCP" && ascii(body, 16, 20) === "RGB ") {
      const packed = new Blob([body]).stream().pipeThrough(new CompressionStream("deflate"));
      const profile = new Uint8Array(await new Response(packed).arrayBuffer());
      found.icc = [chunk("iCCP", join([latin("ICC profile\0\0"), profile]))];
    } else if (name === "EXIF") {
      const skipped = startsWith(body, EXIF) ? EXIF.length : 0;
      takeExif(body.subarray(skipped), found, at + 8 + skipped, bytes);
    } else if (name === "XMP ") found.lost.push("XMP");
    else if (name === "ANIM") found.lost.push("the animation (this is its first picture)");
    at += 8 + length + (length & 1);
  }
}

// EXIF: a small TIFF file of its own

const ORIENTATION = 0x0112, PHOTO = 0x8769;
const SIZES = { 0x0100: "width", 0x0101: "height", 0xa002: "width", 0xa003: "height" };

function takeExif(block, found, at, bytes) {
  found.exif = block;
  try {
    const { fields } = directories(block);
    const field = fields.find(({ tag }) => tag === ORIENTATION);
    const value = field ? field.get() : 1;
    if (value < 2 || value > 8) return;
    found.orientation = value;
    found.neutral = bytes.slice();
    directories(found.neutral.subarray(at, at + block.length)).fields.find(({ tag }) => tag === ORIENTATION).set(1);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    found.exif = null;
    found.lost.push("EXIF, which is damaged");
  }
}

/** The fields of the image's directory and of EXIF's own, and where the first of them links to a thumbnail. */
function directories(block) {
  const data = view(block);
  const little = data.getUint16(0) === 0x4949;
  if (!little && data.getUint16(0) !== 0x4d4d) throw new RangeError("neither byte order");
  const list = (at) => Array.from({ length: data.getUint16(at, little) }, (_, i) => {
    const field = at + 2 + 12 * i, value = field + 8;
    const short = data.getUint16(field + 2, little) === 3;
    return {
      tag: data.getUint16(field, little),
      get: () => (short ? data.getUint16(value, little) : data.getUint32(value, little)),
      set: (n) => (short ? data.setUint16(value, n, little) : data.setUint32(value, n, little)),
    };
  });
  const first = data.getUint32(4, little);
  const fields = list(first);
  const photo = fields.find(({ tag }) => tag === PHOTO);
  return { fields: photo ? [...fields, ...list(photo.get())] : fields, link: first + 2 + 12 * fields.length };
}

/** A copy for an image that was turned upright: its orientation and size, and no thumbnail that still lies. */
function upright(block, turned, width, height) {
  const copy = block.slice();
  const { fields, link } = directories(copy);
  const values = { width, height };
  for (const field of fields) {
    if (field.tag === ORIENTATION) field.set(1);
    else if (field.tag in SIZES) field.set(values[SIZES[field.tag]]);
  }
  if (turned) view(copy).setUint32(link, 0);
  return copy;
}

// Bytes

const latin = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));

function number(value) {
  const bytes = new Uint8Array(4);
  view(bytes).setUint32(0, value);
  return bytes;
}

function join(parts) {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}

function crc(bytes) {
  let sum = -1;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return ~sum >>> 0;
}
