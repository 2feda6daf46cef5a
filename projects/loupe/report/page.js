"use strict";
const root = document.documentElement;
const list = document.getElementById("images");
const control = (name) => document.getElementById(name);

// A pixel is marked where the map exceeds the threshold: a steep line instead of a step, so that
// the outline is smooth.
function mark() {
  const threshold = Number(control("threshold").value) / 100;
  const slope = control("steps").checked ? 40 : 1 / Math.max(0.02, 1 - threshold);
  const alpha = document.getElementById("alpha");
  alpha.setAttribute("slope", String(slope));
  alpha.setAttribute("intercept", String(-slope * threshold));
  root.style.setProperty("--strength", String(Number(control("opacity").value) / 100));
  control("threshold-value").textContent = threshold.toFixed(2);
  control("opacity-value").textContent = control("opacity").value + "%";
}

function arrange() {
  const words = control("search").value.toLowerCase();
  const verdict = control("verdict").value;
  const articles = Array.from(list.children);
  let shown = 0;
  for (const one of articles) {
    const fits = (!verdict || one.dataset.verdict === verdict) &&
      one.dataset.file.toLowerCase().includes(words);
    one.hidden = !fits;
    shown += fits ? 1 : 0;
  }
  control("shown").textContent = shown + " of " + articles.length + " images";
}

function sort() {
  const key = control("sort").value;
  const articles = Array.from(list.children);
  const number = (one) => Number(one.dataset[key]);
  articles.sort((a, b) => key === "file"
    ? a.dataset.file.localeCompare(b.dataset.file)
    : number(b) - number(a));
  list.append(...articles);
}

function enlarge(event) {
  const button = event.target.closest("button.zoom");
  if (!button) return;
  const dialog = control("large");
  const figure = dialog.querySelector("figure");
  const source = button.closest("article").querySelector("figure.marked");
  figure.replaceChildren(...Array.from(source.querySelectorAll("img"), (one) => one.cloneNode()));
  dialog.showModal();
}

for (const name of ["threshold", "opacity", "steps"]) control(name).addEventListener("input", mark);
for (const name of ["search", "verdict"]) control(name).addEventListener("input", arrange);
control("sort").addEventListener("input", sort);
control("beside").addEventListener("input", () =>
  list.classList.toggle("beside", control("beside").checked));
list.addEventListener("click", enlarge);
control("large").addEventListener("click", () => control("large").close());
// Pictures below the fold are missing on paper unless they are loaded first.
async function print() {
  const pictures = Array.from(list.querySelectorAll("img"));
  for (const one of pictures) one.loading = "eager";
  await Promise.all(pictures.map((one) => one.decode().catch(() => null)));
  window.print();
}
control("print").addEventListener("click", print);
mark();
arrange();
