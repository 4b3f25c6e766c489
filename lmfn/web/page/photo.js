// A photograph's file: to pixels on a canvas, and back with what the file said beside them.

import { identify, read, write } from "./metadata.js";

/** What cannot be done with a file, in words for whoever chose it. */
export class PhotoError extends Error {}

const TYPES = { JPEG: "image/jpeg", PNG: "image/png", WebP: "image/webp", AVIF: "image/avif", GIF: "image/gif",
  BMP: "image/bmp", HEIC: "image/heic", "TIFF or camera raw": "image/tiff" };
const JPEG_QUALITY = 0.95;

const BYTES_PER_PIXEL = 24; // before, after and what is saved, 4 each, and the browser's copies of them
const MEMORY = (navigator.deviceMemory ?? 4) * 2 ** 30; // that of the computer, as far as a browser tells
const MOST_MEGAPIXELS = Math.floor(MEMORY / 4 / BYTES_PER_PIXEL / 1e6);
const LONGEST = 32767; // pixels that a canvas of any browser can have in a row

/**
 * Read a file. Returns its `name`, `format`, and what `metadata.read` found; its pixels, upright, are on the canvas, if
 * it is still `wanted` once it is decoded: another one may have been chosen since.
 */
export async function open(file, canvas, wanted) {
  const name = file.name || "The pasted picture";
  let bytes;
  try {
    bytes = new Uint8Array(await file.slice(0, 64).arrayBuffer());
    if (!bytes.length) throw new PhotoError(`${name} is empty.`);
    const format = identify(bytes);
    if (!format) throw new PhotoError(`${name} is not a picture that this page can read. It takes JPEG, PNG, WebP and AVIF.`);
    bytes = new Uint8Array(await file.arrayBuffer());
    const found = await read(bytes, format);
    if (found.width) refuseLarge(name, found.width, found.height);
    if (found.icc.length && !(await keepsValues())) {
      Object.assign(found, { icc: [], srgb: true });
      found.lost.push("the colour profile (this browser turns colours into sRGB)");
    }
    const bitmap = await decode(name, format, found);
    try {
      refuseLarge(name, bitmap.width, bitmap.height);
      if (wanted()) draw(name, bitmap, found.orientation, canvas);
    } finally {
      bitmap.close();
    }
    if (format === "GIF") found.lost.push("the animation, if it was one");
    return { ...found, name, format };
  } catch (error) {
    if (error instanceof DOMException) throw new PhotoError(`${name} cannot be read: ${error.message}`);
    throw error;
  }
}

async function decode(name, format, { neutral, srgb }) {
  try {
    const options = { colorSpaceConversion: srgb ? "default" : "none" };
    return await createImageBitmap(new Blob([neutral], { type: TYPES[format] }), options);
  } catch {
    const reasons = {
      HEIC: "is a HEIC picture, which this browser cannot read. Save it as JPEG first (an iPhone writes JPEG with " +
        "Settings > Camera > Formats > Most Compatible), or use lmfn deblur with the extra heif.",
      "TIFF or camera raw": "is a TIFF or camera raw file, which this browser cannot read. lmfn deblur takes TIFF; " +
        "export raw files as JPEG or TIFF first.",
    };
    throw new PhotoError(`${name} ${reasons[format] ?? `is damaged: this browser cannot read it to its end as ${format}.`}`);
  }
}

function refuseLarge(name, width, height) {
  const megapixels = (width * height) / 1e6;
  const size = `${name} has ${width.toLocaleString("en")} × ${height.toLocaleString("en")} pixels`;
  if (Math.max(width, height) > LONGEST) {
    throw new PhotoError(`${size}; browsers take ${LONGEST.toLocaleString("en")} in a row at most. Cut it into parts.`);
  }
  if (megapixels > MOST_MEGAPIXELS) {
    throw new PhotoError(`${size}, ${megapixels.toFixed()} megapixels; the memory that a page may count on here is enough ` +
      `for ${MOST_MEGAPIXELS}. Make it smaller, cut it into parts, or use lmfn deblur.`);
  }
}

function draw(name, bitmap, orientation, canvas) {
  const { width: w, height: h } = bitmap;
  [canvas.width, canvas.height] = orientation > 4 ? [h, w] : [w, h];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const turn = { 2: [-1, 0, 0, 1, w, 0], 3: [-1, 0, 0, -1, w, h], 4: [1, 0, 0, -1, 0, h], 5: [0, 1, 1, 0, 0, 0],
    6: [0, 1, -1, 0, h, 0], 7: [0, -1, -1, 0, h, w], 8: [0, -1, 1, 0, 0, w] }[orientation];
  // A canvas without memory stays empty, without an error: one pixel is tried first.
  context.fillRect(canvas.width - 1, canvas.height - 1, 1, 1);
  if (!context.getImageData(canvas.width - 1, canvas.height - 1, 1, 1).data[3]) {
    throw new PhotoError(`${name} does not fit into the browser's memory. Make it smaller, or close other pages.`);
  }
  context.clearRect(canvas.width - 1, canvas.height - 1, 1, 1);
  if (turn) context.setTransform(...turn);
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, 0, 0);
  context.resetTransform();
}

/** The file to save: `strength` of the way from before to after, in the photograph's format (PNG for others). */
export async function save(photo, before, after, strength) {
  const format = photo.format === "JPEG" ? "JPEG" : "PNG";
  const canvas = strength === 1 ? after : mix(before, after, strength);
  const encoded = await new Promise((resolve) => canvas.toBlob(resolve, TYPES[format], JPEG_QUALITY));
  if (!encoded) throw new PhotoError("There is not enough memory to save the photograph. Close other pages, and try again.");
  const bytes = write(new Uint8Array(await encoded.arrayBuffer()), format, photo, canvas.width, canvas.height);
  const name = photo.name.replace(/\.[^.]*$/, "") + (format === "JPEG" ? "_deblurred.jpg" : "_deblurred.png");
  return new File([bytes], name, { type: TYPES[format] });
}

function mix(before, after, strength) {
  const canvas = document.createElement("canvas");
  const { width, height } = Object.assign(canvas, { width: after.width, height: after.height });
  const [from, to, mixed] = [before, after, canvas].map((c) => c.getContext("2d", { willReadFrequently: true }));
  const rows = 256;
  for (let top = 0; top < height; top += rows) {
    const place = [0, top, width, Math.min(rows, height - top)];
    const strip = from.getImageData(...place), sharp = to.getImageData(...place).data;
    for (let i = 0; i < sharp.length; i++) strip.data[i] += strength * (sharp[i] - strip.data[i]);
    mixed.putImageData(strip, 0, top);
  }
  return canvas;
}

// One pixel of gray 100 with a profile whose gamma is 1: about 168 where a browser turns it into sRGB all the same.
const PROFILED =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAAsWlDQ1BsAAB42mNgYNzCAARMAgwMuXklRUHuTgoRkVEKDEggMbm4gAEv" +
  "+HaNgRFEX9ZlIB1wpqQWJwPpD0Ack1xQVMLAwOgDEi8vKQCxI4BskSKgo4DsHBA7HcJuALGTIOwpYDUhQc5A9gogmycdiZ2ExIbaBfZy" +
  "DgN1QUlqRQmMjQhDRNggxPKXMDBYfGNgYO5HiCVNY2DY3s7AIHEHIaayiIGBv5mBYdv55NKiMpjZADbBMnewPr/AAAAADElEQVR42mNI" +
  "SUkBAAJcAS1l5vf0AAAAAElFTkSuQmCC";
let kept;

/** Whether this browser leaves the values of a picture that has a colour profile as they are. */
function keepsValues() {
  kept ??= (async () => {
    const bytes = Uint8Array.from(atob(PROFILED), (letter) => letter.charCodeAt(0));
    const canvas = document.createElement("canvas");
    draw("", await createImageBitmap(new Blob([bytes], { type: TYPES.PNG }), { colorSpaceConversion: "none" }), 1, canvas);
    return canvas.getContext("2d").getImageData(0, 0, 1, 1).data[0] === 100;
  })();
  return kept;
}
