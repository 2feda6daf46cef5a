// The page: a queue of images on the left, the chosen one's result on the right.
import { Picture } from "/picture.js";

const $ = (id) => document.getElementById(id);
const picture = new Picture($("picture"));
const items = []; // { id, name, button, told, bar, state, result, links, error }
let shown = null;
let operatingPoint = ""; // What the verdict means, in words.
let token = new URLSearchParams(location.hash.slice(1)).get("token") || "";
history.replaceState(null, "", location.pathname);

const WORDS = {
  authentic: "No trace of a forgery found",
  forged: "Forged",
  undecided: "Undecided",
  "": "No verdict: the model has no rule",
};
const ENDED = new Set(["done", "failed", "cancelled", "interrupted"]);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function element(name, text = "", classes = "") {
  const made = document.createElement(name);
  made.textContent = text; // Never markup: names of files are chosen by strangers.
  if (classes) made.className = classes;
  return made;
}

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service cannot be reached; it may have been stopped.");
  }
  if (response.status === 401) $("ask-token").hidden = false;
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const error = new Error(told.error || `The service answers with status ${response.status}.`);
  error.status = response.status;
  error.wait = Number(response.headers.get("Retry-After")) || 0;
  throw error;
}

// The queue ---------------------------------------------------------------------------------------

function add(file) {
  const item = { file, name: file.name || "pasted image", state: "uploading" };
  item.button = element("button");
  item.button.type = "button";
  item.verdict = element("span");
  item.told = element("span", "waiting to be sent", "told");
  item.button.title = item.name;
  item.bar = element("progress");
  item.bar.setAttribute("aria-label", `Progress of ${item.name}`);
  item.button.append(element("span", item.name, "name"), item.verdict, item.told);
  item.button.addEventListener("click", async () => {
    await choose(item);
    // On a narrow screen the result is below the queue.
    if (matchMedia("(max-width: 50rem)").matches) $("view").scrollIntoView();
  });
  const line = element("li");
  line.append(item.button);
  $("queue").append(line);
  items.push(item);
}

function tell(item, text, isError = false) {
  item.told.textContent = text;
  item.told.classList.toggle("error", isError);
}

function end(item, error) {
  item.bar.remove();
  if (error) {
    error = error.replace(`${item.name}: `, ""); // The name stands above it.
    item.error = error;
    item.state = "failed";
    tell(item, error, true);
  } else {
    const { verdict, probability } = item.result;
    item.verdict.textContent = verdict || "done";
    item.verdict.className = verdict;
    tell(item, `probability ${probability.toFixed(2)}`);
  }
  if (!shown || shown === item) choose(item);
  summarise();
}

function summarise() {
  const failed = items.filter((item) => item.error).length;
  const done = items.filter((item) => item.result).length;
  const left = items.length - failed - done;
  const parts = [`${done} done`];
  if (failed) parts.push(`${failed} failed`);
  if (left) parts.push(`${left} to go`);
  $("status").textContent = items.length ? parts.join(", ") : "";
}

async function send(item) {
  for (;;) {
    const form = new FormData();
    form.append("file", item.file, item.name);
    tell(item, "sending");
    item.button.append(item.bar);
    try {
      const response = await ask("/v1/predictions?wait=0", { method: "POST", body: form });
      take(item, await response.json());
      return;
    } catch (error) {
      if (error.status === 429) {
        tell(item, "the service is busy; waiting for a place");
        await pause(1000 * Math.min(error.wait || 1, 5));
      } else if (error.status === 401) {
        tell(item, "waiting for the token");
        while (!$("ask-token").hidden) await pause(200);
      } else {
        end(item, error.message);
        return;
      }
    }
  }
}

function take(item, told) {
  Object.assign(item, { id: told.id, state: told.state, result: told.result, links: told.links });
  if (told.state === "done") end(item, "");
  else if (ENDED.has(told.state)) end(item, told.error);
  else if (told.state === "running") tell(item, "being examined");
  else tell(item, told.position ? `${told.position} before it` : "next");
}

async function follow(item) {
  while (!ENDED.has(item.state)) {
    try {
      take(item, await (await ask(`${item.links.self}?wait=2`)).json());
    } catch (error) {
      if (error.status === 401) await pause(1000);
      else end(item, error.message);
    }
  }
}

let sending = false;
async function work() {
  if (sending) return;
  sending = true;
  // One upload at a time; results are waited for in the order in which they come.
  for (let item; (item = items.find((one) => one.state === "uploading")); ) {
    item.state = "sending";
    await send(item);
    summarise();
  }
  sending = false;
}

let following = false;
async function watch() {
  if (following) return;
  following = true;
  for (;;) {
    const item = items.find((one) => one.id && !ENDED.has(one.state));
    if (item) await follow(item);
    else if (items.every((one) => ENDED.has(one.state))) break;
    else await pause(100);
  }
  following = false;
}

function accept(files) {
  for (const file of files) add(file);
  summarise();
  work();
  watch();
}

// The result --------------------------------------------------------------------------------------

async function choose(item) {
  shown = item;
  for (const one of items) one.button.setAttribute("aria-current", String(one === item));
  if (!item.result && !item.error) return;
  $("view").hidden = false;
  $("file").textContent = item.name;
  const failed = Boolean(item.error);
  for (const part of $("view").querySelectorAll("figure, section")) part.hidden = failed;
  $("reasons").replaceChildren();
  $("verdict").className = failed ? "error" : item.result.verdict;
  $("meaning").textContent = failed ? "" : operatingPoint;
  if (failed) {
    $("verdict").textContent = `No prediction: ${item.error}.`;
    return;
  }
  const { verdict, probability, reasons, warnings, regions, facts, text } = item.result;
  $("verdict").textContent = `${WORDS[verdict]} (probability ${probability.toFixed(2)})`;
  const told = [...classes(item.result), ...reasons, ...warnings];
  $("reasons").replaceChildren(...told.map((text) => element("li", text)));
  tabulate(regions);
  $("facts").replaceChildren(...facts.map((fact) => element("li", fact.sentence)));
  $("text-part").hidden = !text;
  $("text").textContent = text?.text ?? "";
  $("text-warnings").replaceChildren(...(text?.warnings ?? []).map((line) => element("li", line)));
  offer(item);
  $("picture").setAttribute("aria-label", describe(item.name, regions));
  try {
    const [image, map] = await Promise.all(
      [item.links.preview, item.links.preview_map].map(async (path) => (await ask(path)).blob()),
    );
    if (shown !== item) return;
    await picture.load(image, map);
    outline(item.result);
    draw();
  } catch (error) {
    $("status").textContent = `The picture cannot be shown: ${error.message}`;
  }
}

function classes(result) {
  const parts = Object.entries(result.class_probabilities || {});
  if (!parts.length) return [];
  return [`class: ${parts.map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ")}`];
}

function describe(name, regions) {
  const count = regions.length;
  if (!count) return `${name}; no region is marked`;
  return `${name}; ${count} ${count === 1 ? "region is" : "regions are"} marked, listed below`;
}

function tabulate(regions) {
  const table = $("regions");
  table.replaceChildren();
  if (!regions.length) {
    table.append(element("caption", "Nothing above one half."));
    return;
  }
  const head = table.createTHead().insertRow();
  for (const name of ["Region", "Left", "Top", "Right", "Bottom", "Pixels", "Mean"]) {
    const cell = element("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const one of regions) {
    const row = body.insertRow();
    for (const key of ["number", "left", "top", "right", "bottom", "pixels"]) {
      row.append(element("td", one[key].toLocaleString("en")));
    }
    row.append(element("td", one.mean.toFixed(2)));
  }
}

function outline({ width, height, regions }) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  for (const one of regions) {
    for (const style of ["under", "over"]) {
      const box = document.createElementNS(space, "rect");
      const sides = { x: one.left, y: one.top, width: one.right - one.left, height: one.bottom - one.top };
      for (const [name, value] of Object.entries(sides)) box.setAttribute(name, value);
      box.setAttribute("class", style);
      drawing.append(box);
    }
  }
  $("boxes").replaceChildren(drawing);
}

function draw() {
  const opacity = $("opacity").value / 100;
  const threshold = $("threshold").value / 100;
  $("opacity-value").textContent = `${$("opacity").value}%`;
  $("threshold-value").textContent = threshold.toFixed(2);
  $("boxes").hidden = !$("show-boxes").checked;
  picture.draw(opacity, threshold);
}

function offer(item) {
  const names = { report: "Report", map: "Forgery map (PNG)", mask: "Mask (PNG)" };
  const links = Object.entries(names).filter(([key]) => item.links[key]);
  $("downloads").replaceChildren(...links.map(([key, name]) => {
    const link = element("a", name);
    link.href = item.links[key];
    link.addEventListener("click", (event) => {
      event.preventDefault();
      download(item, key).catch((error) => { $("status").textContent = error.message; });
    });
    return link;
  }));
}

// Links cannot carry a token, so the bytes are fetched and handed to the browser.
async function download(item, key) {
  const response = await ask(item.links[key]);
  const address = URL.createObjectURL(await response.blob());
  const link = element("a");
  link.href = address;
  const stem = item.name.replace(/\.[^.]*$/, "");
  const given = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") || "");
  link.download = given ? given[1] : `${stem}_${key}.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// Events ------------------------------------------------------------------------------------------

$("files").addEventListener("change", (event) => {
  accept(event.target.files);
  event.target.value = "";
});
for (const kind of ["dragover", "dragenter"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  accept(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => accept(event.clipboardData.files));
for (const id of ["opacity", "threshold", "show-boxes"]) $(id).addEventListener("input", draw);
$("ask-token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  $("ask-token").hidden = true;
  about();
});

async function about() {
  try {
    const { model } = await (await ask("/v1/model")).json();
    $("model").textContent = model.weights
      ? `${model.weights.replace("loupe://", "")}, ${model.sha256.slice(0, 12)}`
      : "the model is being loaded";
    operatingPoint = model.operating_point || "";
    if (!model.weights) setTimeout(about, 2000);
  } catch (error) {
    $("model").textContent = error.message;
  }
}
about();
