// The worker that runs the network, seen from the page: started at the first photograph, stopped by cancelling.

let worker, ready, useWebgpu = true, next = 0;
const waiting = new Map();

/** Why something did not work, for the page to put into words. */
export class EngineError extends Error {}
export class Cancelled extends Error {}

/** Load the network if it is not loaded, and check it. Returns what runs it: `provider`, `threads`. */
export function start() {
  if (!worker) {
    worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error === undefined) resolve(data);
      else reject(new EngineError(data.error));
    };
    worker.onerror = (event) => stop(new EngineError(event.message || "the worker could not be loaded"));
    ready = ask({ kind: "start", webgpu: useWebgpu });
    ready.catch((error) => stop(error));
  }
  return ready;
}

/** One tile: RGBA (which is handed over) to RGBA; of a grey photograph, it stays grey. */
export async function sharpen(pixels, width, height, grey) {
  const { provider } = await start();
  if (provider === "wasm") return (await ask({ pixels, width, height, grey }, [pixels.buffer])).pixels;
  try {
    return (await ask({ pixels: pixels.slice(), width, height, grey })).pixels;
  } catch (error) {
    if (error instanceof Cancelled) throw error;
    // Out of memory on the graphics card, or the card is gone: the processor does it, from here on.
    console.warn(`WebGPU: ${error.message}`);
    stop(error);
    useWebgpu = false;
    return sharpen(pixels, width, height, grey);
  }
}

/** Stop what it is doing, if it is doing anything; the next start loads it again. */
export function cancel() {
  if (waiting.size) stop(new Cancelled());
}

function stop(reason) {
  worker?.terminate();
  worker = undefined;
  for (const { reject } of waiting.values()) reject(reason);
  waiting.clear();
}

function ask(message, transfer = []) {
  const id = next++;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ ...message, id }, transfer);
  });
}
