// The page of `r1track play`: upload, box, track, correct, take away. The server does the work; this shows it.
"use strict";
const get = (id) => document.getElementById(id);
const sides = ["x", "y", "w", "h"].map(get);
const body = document.body, stage = get("stage"), slider = get("slider"), rect = get("rect");
let clip = null; // what /state says of the frames
let steps = new Map(); // the track: frame -> { box, status }
let draft = null; // a box that was drawn in this frame and not yet tracked
let working = null; // what stops the work in progress
let timer = null; // of Play
let follow = false; // whether the picture goes along with the tracker

function say(text, error = false) {
  get("status").textContent = text;
  get("status").classList.toggle("error", error);
}

// Progress; a screen reader does not speak it.
function count(text) {
  get("count").textContent = text;
}

// The lines that a POST answers with, one value each; the last says how it ended.
async function* lines(path, data) {
  const headers = data ? { "Content-Type": "application/json" } : {};
  const response = await fetch(path, { method: "POST", body: data && JSON.stringify(data), headers, signal: working.signal });
  await check(response);
  let text = "", end = null;
  for (const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); ;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (text + value).split("\n");
    text = parts.pop();
    for (const part of parts) {
      const value = JSON.parse(part);
      if (value.constructor === Object && !value.id) end = value;
      else yield value;
    }
  }
  if (!end || end.error) throw new Error(end?.error ?? "The work ended too early; see the terminal.");
}

async function check(response) {
  if (response.ok) return;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(error ?? `The server answered ${response.status}; see the terminal.`);
}

// One piece of work at a time, with a way to stop it.
async function run(work) {
  if (working) return;
  working = new AbortController();
  pause();
  show();
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error instanceof TypeError ? "The server is gone; start `r1track play` again." : error.message, true);
  } finally {
    working = follow = false;
    count("");
    show();
  }
}

function at() {
  return Number(slider.value);
}

// Draw the page as it is now.
function show() {
  const t = at(), step = steps.get(t), box = draft ?? step?.box;
  for (const button of document.querySelectorAll("#panel button, #choose button")) button.disabled = Boolean(working);
  get("stop").hidden = !working;
  get("stop").disabled = false;
  get("choose").hidden = Boolean(clip);
  get("work").hidden = !clip;
  if (!clip) return get("choose").after(get("stop"));
  get("take").before(get("stop"));
  const url = `/frames/${clip.id}/${t}`;
  if (get("frame").getAttribute("src") !== url) get("frame").src = url;
  get("get-boxes").disabled = get("get-video").disabled = Boolean(working) || !steps.size;
  get("go").textContent = steps.size && t ? "Go on from here" : "Track from here";
  rect.setAttribute("visibility", box ? "visible" : "hidden");
  rect.setAttribute("class", draft ? "new" : (step?.status ?? ""));
  ["x", "y", "width", "height"].forEach((name, k) => box && rect.setAttribute(name, box[k]));
  if (!sides.includes(document.activeElement)) sides.forEach((side, k) => (side.value = box ? Math.round(box[k]) : ""));
  const words = { init: "start", ok: "found", clipped: "found, partly outside", held: "not found, box kept", absent: "not there, box kept" };
  const state = draft ? "a new box" : step ? words[step.status] : "no box yet";
  get("place").textContent = `Frame ${t + 1} of ${clip.total}: ${state}`;
  slider.ariaValueText = get("place").textContent;
  const paint = get("marks").getContext("2d");
  paint.clearRect(0, 0, clip.total, 1);
  for (const [frame, { status }] of steps) {
    paint.fillStyle = { init: "#4a7dff", held: "#ffa000", absent: "#ffa000" }[status] ?? "#35b04a";
    paint.fillRect(frame, 0, 1, 1);
  }
}

function go(t) {
  if (t !== at()) draft = null;
  slider.value = t;
  show();
}

function open(state) {
  clip = state;
  steps = new Map(clip.track.map(([t, box, status]) => [t, { box, status }]));
  const [width, height] = clip.size;
  get("overlay").setAttribute("viewBox", `0 0 ${width} ${height}`);
  stage.style.aspectRatio = `${width} / ${height}`;
  stage.style.maxWidth = `calc(65vh * ${width / height})`;
  get("marks").width = clip.total;
  slider.max = clip.total - 1;
  sides.forEach((side, k) => { side.min = k < 2 ? 0 : 1; side.max = clip.size[k % 2]; });
  go(0);
}

// Choosing: every file is sent as it is, under its name; the server reads them.
async function upload(files) {
  if (!files.length) return;
  if (files.reduce((sum, file) => sum + file.size, 0) > Number(body.dataset.most)) {
    return say(`These files have more than ${Number(body.dataset.most) / 2 ** 30} GiB; give a shorter part.`, true);
  }
  await run(async () => {
    const { signal } = working, send = (path, data) => fetch(path, { method: "POST", body: data, signal }).then(check);
    await send("/clear");
    clip = null;
    const what = files.length > 1 ? `${files.length} files` : files[0].name;
    say(`Reading ${what} …`);
    for (const [k, file] of files.entries()) {
      count(`copying ${k + 1} of ${files.length}`);
      await send(`/upload?name=${encodeURIComponent(file.name)}`, file);
    }
    for await (const value of lines("/read")) {
      if (value.id) open(value);
      else count(`frame ${value}`);
    }
    say(`${what}: ${clip.total} frames of ${clip.size.join(" × ")} pixels. Draw a box around the target.`);
  });
}

// The files of what was dropped; of a folder, those directly in it.
async function dropped(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean), found = [];
  for (const entry of entries) {
    if (entry.isFile) found.push(entry);
    else for (const reader = entry.createReader(); ;) {
      const part = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!part.length) break;
      found.push(...part.filter((inner) => inner.isFile));
    }
  }
  return Promise.all(found.map((entry) => new Promise((done, fail) => entry.file(done, fail))));
}

async function track(start) {
  await run(async () => {
    const frame = at();
    follow = true;
    say("Tracking …");
    for await (const [t, box, status] of lines("/track", { frame, ...start })) {
      if (t === frame) for (const old of [...steps.keys()]) if (old >= frame) steps.delete(old);
      steps.set(t, { box, status });
      if (t === frame) draft = null;
      if (follow) go(t);
      else show();
      count(`frame ${t + 1} of ${clip.total}`);
    }
    say("Done. Where the box is wrong, go to that frame, draw it anew, and go on from there.");
  });
}

function download(path) {
  const link = Object.assign(document.createElement("a"), { href: path, download: "" });
  link.click();
}

function pause() {
  clearInterval(timer);
  timer = null;
  get("play").textContent = "Play";
}

// The box: by pointer, by arrow keys, by its four numbers; whole pixels, within the frame.
function put(x, y, w, h) {
  if (working) return;
  const [width, height] = clip.size, within = (value, low, high) => Math.min(Math.max(Math.round(value), low), high);
  const left = within(x, 0, width - 1), top = within(y, 0, height - 1);
  draft = [left, top, within(w, 1, width - left), within(h, 1, height - top)];
  pause();
  show();
}

function place(event) {
  const area = stage.getBoundingClientRect();
  const share = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  return share.map((value, k) => Math.round(Math.min(Math.max(value, 0), 1) * clip.size[k]));
}

let corner = null;
stage.addEventListener("pointerdown", (event) => {
  if (working || event.button) return;
  corner = place(event);
  stage.setPointerCapture(event.pointerId);
});
stage.addEventListener("pointermove", (event) => {
  if (!corner) return;
  const [x, y] = place(event), [left, top] = [Math.min(x, corner[0]), Math.min(y, corner[1])];
  const [w, h] = [Math.abs(x - corner[0]), Math.abs(y - corner[1])];
  if (w > 1 && h > 1) put(left, top, w, h); // a click draws nothing
});
for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => (corner = null));
stage.addEventListener("keydown", (event) => {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
  if (event.key === "Enter") return get("by-box").requestSubmit();
  if (dx === undefined || event.altKey || event.metaKey) return;
  event.preventDefault();
  const [width, height] = clip.size, step = Math.max(1, Math.round(width / 100));
  const middle = [width * 3, height * 3, width * 2, height * 2].map((value) => Math.round(value / 8));
  const [x, y, w, h] = draft ?? steps.get(at())?.box ?? middle;
  if (event.shiftKey) put(x, y, Math.max(1, w + dx * step), Math.max(1, h + dy * step));
  else put(Math.min(Math.max(x + dx * step, 0), width - w), Math.min(Math.max(y + dy * step, 0), height - h), w, h);
});
sides.forEach((side) => side.addEventListener("change", () => {
  if (sides.every(({ value }) => value !== "")) put(...sides.map(({ value }) => Number(value)));
}));
get("by-box").addEventListener("submit", (event) => {
  event.preventDefault();
  track({ box: draft ?? steps.get(at())?.box ?? sides.map(({ value }) => Number(value)) });
});
get("by-text")?.addEventListener("submit", (event) => {
  event.preventDefault();
  track({ text: get("text").value });
});

slider.addEventListener("input", () => { follow = false; pause(); draft = null; show(); });
for (const [id, by] of [["back", -1], ["on", 1]]) get(id).onclick = () => { follow = false; pause(); go(at() + by); };
get("play").onclick = () => {
  if (timer) return pause();
  follow = false;
  if (at() === clip.total - 1) go(0);
  timer = setInterval(() => (at() < clip.total - 1 ? go(at() + 1) : pause()), 1000 / clip.rate);
  get("play").textContent = "Pause";
};
get("stop").onclick = () => working?.abort();
get("get-boxes").onclick = () => download("/followed.csv");
get("get-video").onclick = () => run(async () => {
  say("Drawing the video …");
  for await (const t of lines("/draw")) count(`frame ${t} of ${clip.total}`);
  download("/followed.mp4");
  say("The video is ready.");
});
get("other").onclick = () => { pause(); clip = null; say(""); show(); get("pick-video").focus(); };
for (const [button, input] of [["pick-video", "video-file"], ["pick-folder", "folder-files"]]) {
  get(button).onclick = () => get(input).click();
  get(input).onchange = async () => {
    await upload([...get(input).files].filter((file) => file.webkitRelativePath.split("/").length < 3));
    get(input).value = "";
  };
}
body.addEventListener("dragover", (event) => { event.preventDefault(); body.classList.add("over"); });
body.addEventListener("dragleave", () => body.classList.remove("over"));
body.addEventListener("drop", async (event) => {
  event.preventDefault();
  body.classList.remove("over");
  await upload(await dropped(event.dataTransfer.items));
});
fetch("/state").then((response) => response.json()).then((state) => (state ? open(state) : show()));
