// The page: one photograph at a time, from the file that was chosen to the one that is saved.

import { Cancelled, cancel, sharpen, start } from "./engine.js";
import { PhotoError, open, save } from "./photo.js";
import { blend, plan } from "./tiles.js";

const part = (id) => document.getElementById(id);
const [viewer, scroller, stage, before, after, divider, split, strength] =
  ["viewer", "scroller", "stage", "before", "after", "divider", "split", "strength"].map(part);

let photo = null; // what is open
let job = 0; // the number of the work in progress: what an older one does no longer counts

// Choosing

async function choose(files) {
  if (!files.length) return;
  const number = ++job;
  cancel();
  say(files.length > 1 ? `One at a time: this is ${files[0].name}. Folders: lmfn deblur.` : "");
  part("save").hidden = true; // until the file is open, or cannot be opened: what is sharpened then stays
  if (part("tools").hidden) show("start");
  part("file").value = "";
  try {
    const found = await open(files[0], before, () => {
      if (number !== job) return false;
      photo = null; // its canvas is the other's from here on
      return true;
    });
    if (number !== job) return;
    photo = found;
  } catch (error) {
    if (number === job) fail(error);
    return;
  }
  arrange({});
  const { width, height } = Object.assign(after, { width: before.width, height: before.height });
  viewer.style.setProperty("--ratio", width / height);
  viewer.style.setProperty("--width", width);
  document.querySelector("[value=fit]").click();
  await work();
}

/** Sharpen what is open. */
async function work() {
  const number = ++job;
  const begun = performance.now();
  show("work");
  const source = before.getContext("2d", { willReadFrequently: true });
  const target = after.getContext("2d", { willReadFrequently: true });
  target.globalCompositeOperation = "copy";
  target.drawImage(before, 0, 0);
  const tiles = plan(before.width, before.height);
  const area = tiles.reduce((sum, tile) => sum + tile.width * tile.height, 0);
  let finished = 0;
  try {
    progress("Loading the network…");
    const { provider, threads } = await start();
    const started = performance.now();
    for (const [i, tile] of tiles.entries()) {
      const seconds = (performance.now() - started) / 1000;
      const left = i ? `, ${duration((seconds * (area - finished)) / finished)} left` : "";
      progress(tiles.length > 1 ? `Sharpening part ${i + 1} of ${tiles.length}${left}` : "Sharpening…", i && finished / area);
      const place = [tile.left, tile.top, tile.width, tile.height];
      const result = await sharpen(source.getImageData(...place).data, tile.width, tile.height, photo.grey);
      if (number !== job) return;
      const below = target.getImageData(...place);
      blend(tile, result, below.data);
      target.putImageData(below, tile.left, tile.top);
      finished += tile.width * tile.height;
    }
    done(`Sharpened in ${duration((performance.now() - begun) / 1000)} by ` +
      (provider === "webgpu" ? "the graphics card." : `the processor (${threads} thread${threads > 1 ? "s" : ""}).`));
  } catch (error) {
    if (number === job) fail(error);
  }
}

function duration(seconds) {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}

// What the page says

function say(text) {
  part("message").textContent = text;
}

function show(section) {
  part("start").hidden = section !== "start";
  part("work").hidden = section !== "work";
}

function progress(text, share) {
  if (part("progress").hidden) {
    arrange({ working: true });
    part("cancel").focus({ preventScroll: true });
  }
  part("status").textContent = text;
  if (share) part("meter").value = share;
  else part("meter").removeAttribute("value");
}

function done(text) {
  arrange({ finished: true });
  part("status").textContent = text;
  const keeps = [photo.exif && "EXIF", photo.icc.length && "the colour information"].filter(Boolean).join(" and ");
  const lost = photo.lost.join(", ");
  part("kept").textContent = [keeps && `The saved file keeps ${keeps}.`, lost && `It does not keep: ${lost}.`].filter(Boolean).join(" ");
  split.focus({ preventScroll: true });
}

function arrange({ working = false, finished = false }) {
  part("progress").hidden = !working;
  part("tools").hidden = part("save").hidden = !finished;
  part("again").hidden = working || finished;
  part("kept").textContent = "";
  viewer.classList.toggle("unfinished", !finished);
  if (!finished) setStrength(100);
  moveSplit(finished ? 50 : 0);
}

function fail(error) {
  if (!(error instanceof Cancelled || error instanceof PhotoError)) console.error(error);
  if (!photo) {
    show("start");
    part("choose").focus({ preventScroll: true });
  } else if (part("tools").hidden) {
    show("work");
    arrange({});
    part("status").textContent = "";
    part("again").focus({ preventScroll: true });
  } else {
    part("save").hidden = false;
  }
  if (error instanceof Cancelled) part("status").textContent = "Cancelled.";
  else if (error instanceof PhotoError) say(error.message);
  else if (/memory|alloc/i.test(error.message)) say("The browser has not enough memory for this. Close other pages, and try again.");
  else if (/wrong results/.test(error.message)) say(`Nothing was done: ${error.message}. Try another browser, or lmfn deblur.`);
  else say(`The network could not be run: ${error.message}. Is lmfn web still running?`);
}

// Before and after

function moveSplit(percent) {
  split.value = percent;
  place();
}

function place() {
  const x = (viewer.clientWidth * split.value) / 100;
  divider.style.left = `${x}px`;
  after.style.clipPath = `inset(0 0 0 ${x + scroller.scrollLeft - stage.offsetLeft}px)`;
}

function setStrength(percent) {
  strength.value = percent;
  part("percent").textContent = `${percent} %`;
  after.style.opacity = percent / 100;
}

split.addEventListener("input", place);
scroller.addEventListener("scroll", place);
new ResizeObserver(place).observe(viewer);
strength.addEventListener("input", () => setStrength(strength.value));

for (const choice of document.querySelectorAll("[name=zoom]")) {
  choice.addEventListener("change", () => {
    const full = choice.value === "full";
    viewer.className = choice.value;
    scroller.tabIndex = full ? 0 : -1; // so that the arrow keys scroll it
    stage.style.width = full ? `${before.width / devicePixelRatio}px` : "";
    scroller.scrollTo((scroller.scrollWidth - scroller.clientWidth) / 2, (scroller.scrollHeight - scroller.clientHeight) / 2);
    place();
  });
}

viewer.addEventListener("pointerdown", (event) => {
  const splits = divider.contains(event.target) || viewer.classList.contains("fit");
  if (event.button || event.target === scroller || !(splits || event.pointerType === "mouse")) return;
  const toPointer = ({ clientX }) => {
    const { left, width } = viewer.getBoundingClientRect();
    moveSplit(Math.min(100, Math.max(0, (100 * (clientX - left)) / width)));
  };
  const move = (next) => (splits ? toPointer(next) : scroller.scrollBy(-next.movementX, -next.movementY));
  viewer.setPointerCapture(event.pointerId);
  viewer.addEventListener("pointermove", move);
  viewer.addEventListener("lostpointercapture", () => viewer.removeEventListener("pointermove", move), { once: true });
  if (splits) toPointer(event);
  event.preventDefault();
});

// Buttons, dropping, pasting

part("file").addEventListener("change", (event) => choose([...event.target.files]));
for (const id of ["choose", "another"]) part(id).addEventListener("click", () => part("file").click());
part("again").addEventListener("click", () => {
  say("");
  work();
});
part("cancel").addEventListener("click", cancel);
document.addEventListener("keydown", (event) => event.key === "Escape" && !part("progress").hidden && cancel());
document.addEventListener("paste", (event) => choose([...event.clipboardData.files]));

part("save").addEventListener("click", async () => {
  part("save").disabled = true;
  try {
    const file = await save(photo, before, after, strength.value / 100);
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: file.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may still be reading it
    part("status").textContent = `Saved as ${file.name}.`;
  } catch (error) {
    fail(error);
  }
  part("save").disabled = false;
});

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dragging", kind === "dragover" || kind === "dragenter");
    if (kind === "drop") choose([...event.dataTransfer.files]);
  });
}
