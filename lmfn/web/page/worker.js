// The network, in a thread of its own: ONNX Runtime with WebGPU where its results are right, else WebAssembly.

const CLOSE_ENOUGH = 1 / 510; // half a level of 8 bits
const MOST_THREADS = 8;
// Bytes of a tile's largest map: 64 channels of the tile and its border. Where a graphics card cannot hold it, the result
// may be wrong without an error.
const LARGEST_MAP = 4 * 64 * (1152 + 32) ** 2;

let ort, session;

self.onmessage = async ({ data }) => {
  try {
    const { reply, transfer } = await (data.kind === "start" ? start(data) : sharpen(data));
    self.postMessage({ ...reply, id: data.id }, transfer ?? []);
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};

async function start({ webgpu }) {
  ort = await import("./runtime/ort.webgpu.min.mjs");
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
  Object.assign(ort.env.wasm, { wasmPaths: new URL("runtime/", import.meta.url).href, numThreads: threads });
  ort.env.logLevel = "error";
  const [network, test] = await Promise.all([get("network.onnx"), get("self-test.json")]);
  const bytes = new Uint8Array(await network.arrayBuffer()), expected = await test.json();
  const refusals = [];
  const card = webgpu && (await navigator.gpu?.requestAdapter().catch(() => null));
  for (const provider of card && card.limits.maxStorageBufferBindingSize >= LARGEST_MAP ? ["webgpu", "wasm"] : ["wasm"]) {
    try {
      session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
      const error = await selfTest(expected);
      if (error <= CLOSE_ENOUGH) return { reply: { provider, threads, refusals } };
      refusals.push(`${provider} gives wrong results (off by ${error.toPrecision(2)} of 1)`);
    } catch (error) {
      refusals.push(`${provider}: ${error.message ?? error}`);
    }
    await session?.release().catch(() => {});
    session = undefined;
  }
  throw new Error(refusals.join("; "));
}

async function get(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
}

/** The largest difference from what PyTorch made of the same small image. */
async function selfTest({ width, height, blurred, sharp }) {
  const rgb = decode(blurred), expected = new Float32Array(decode(sharp).buffer);
  const rgba = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) rgba[4 * i + c] = rgb[3 * i + c];
  const found = await run(rgba, width, height);
  let worst = 0;
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      const value = Math.min(1, Math.max(0, found[c * width * height + i]));
      const error = Math.abs(value - expected[3 * i + c]);
      if (!(error <= worst)) worst = error; // also where it is no number
    }
  }
  return worst;
}

const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** RGBA in, RGBA out, in 8 bits. */
async function sharpen({ pixels, width, height, grey }) {
  const found = await run(pixels, width, height), area = width * height;
  for (let i = 0; i < area; i++) {
    const mean = (found[i] + found[area + i] + found[2 * area + i]) / 3;
    for (let c = 0; c < 3; c++) {
      const value = grey ? mean : found[c * area + i];
      if (!Number.isFinite(value)) throw new Error("the network's output is not finite");
      pixels[4 * i + c] = 255 * value; // rounded and clamped by the array
    }
  }
  return { reply: { pixels }, transfer: [pixels.buffer] };
}

/** RGBA in 8 bits to the network's result, red, green and blue one after the other. */
async function run(rgba, width, height) {
  const area = width * height, planes = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) for (let c = 0; c < 3; c++) planes[c * area + i] = rgba[4 * i + c] / 255;
  const blurred = new ort.Tensor("float32", planes, [1, 3, height, width]);
  const { sharp } = await session.run({ blurred });
  const found = await sharp.getData(); // from the graphics card, too
  blurred.dispose();
  sharp.dispose();
  return found;
}
