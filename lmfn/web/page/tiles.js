// A large photograph is sharpened in tiles, so that its size does not matter to the memory.

export const TILE = 1152;
/**
 * The attention's windows lie on blocks of 192 pixels, counted from the photograph's corner. Tiles begin on such a block
 * and so see the windows that the whole photograph has; what a tile's edge disturbs beyond that is mostly gone after as
 * many pixels.
 */
export const BLOCK = 192;
const RAMP = 64; // over so many pixels, one tile's result becomes the next one's

/** The tiles, row by row: each with its place, and whether there is one before it on the left and above. */
export function plan(width, height) {
  const rows = cut(height), columns = cut(width);
  return rows.flatMap(([top, bottom]) => columns.map(([left, right]) => (
    { left, top, width: right - left, height: bottom - top, from: { left: left > 0, top: top > 0 } })));
}

function cut(length) {
  const parts = [];
  let at = 0;
  for (; at + TILE < length; at += TILE - 2 * BLOCK) parts.push([at, at + TILE]);
  return [...parts, [at, length]];
}

/** Blend a tile's result (RGBA) into what the tiles before it have left at its place; that is changed and returned. */
export function blend(tile, result, below) {
  const start = BLOCK - RAMP / 2;
  const share = (at, hasOther) => (hasOther ? Math.min(1, Math.max(0, (at + 0.5 - start) / RAMP)) : 1);
  const columns = Array.from({ length: tile.width }, (_, x) => share(x, tile.from.left));
  for (let y = 0, i = 0; y < tile.height; y++) {
    const row = share(y, tile.from.top);
    for (let x = 0; x < tile.width; x++, i += 4) {
      const weight = row * columns[x];
      for (let c = i; c < i + 3; c++) below[c] += weight * (result[c] - below[c]);
    }
  }
  return below;
}
