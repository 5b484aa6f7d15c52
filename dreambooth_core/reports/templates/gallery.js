"use strict";

const all = JSON.parse(document.getElementById("images").textContent);
const CHUNK = 60; // tiles added at a time, for pages with thousands of images
const at = (id) => document.getElementById(id);
const SCORES = [["prompt_fidelity", "prompt fidelity"], ["subject_fidelity", "subject fidelity"],
  ["similarity", "similarity"]];
const measured = SCORES.filter(([name]) => all.some((item) => item[name] != null));

let shown = []; // images that pass the filters, sorted
let drawn = 0; // number of `shown` with a tile
let current = 0; // index in `shown` of the focused tile
let selected = []; // at most two images to compare
let opened = null; // image in the viewer

function make(tag, names, ...children) {
  const node = Object.assign(document.createElement(tag), names);
  node.append(...children);
  return node;
}

function number(value) {
  return value.toFixed(3).replace("-", "\u2212");
}

// Properties of an image: [[name, value], ...].
function facts(item) {
  const of = [["model", item.model], ["seed", item.seed], ["guidance", item.guidance],
    ["steps", item.steps], ["scheduler", item.scheduler], ["negative prompt", item.negative],
    ["size", item.width && `${item.width} × ${item.height}`]];
  for (const [name, title] of SCORES) of.push([title, item[name] == null ? null : number(item[name])]);
  if (item.duplicate_of != null) of.push(["repeats", `image ${item.duplicate_of}`]);
  if (item.unsafe != null) of.push(["safety", item.unsafe ? "flagged unsafe" : "not flagged"]);
  return of.filter(([, value]) => value != null && value !== "");
}

function picture(item, whole) {
  const image = make("img", { alt: `${item.prompt}, seed ${item.seed}`, loading: "lazy",
    src: whole && item.file ? item.file : item.thumb });
  if (item.width) [image.width, image.height] = [item.width, item.height];
  if (Math.max(item.width, item.height) <= 128) image.className = "small";
  if (item.unsafe && at("unsafe").checked) image.classList.add("blurred");
  return make("span", { className: "frame" }, image);
}

function tile(item, index) {
  const frame = picture(item, false);
  const badges = [];
  if (item.duplicate_of != null) badges.push(`repeats ${item.duplicate_of}`);
  if (item.unsafe) badges.push("unsafe");
  if (badges.length) {
    frame.append(make("span", { className: "badges" },
      ...badges.map((text) => make("span", { className: "badge", textContent: text }))));
  }
  const by = measured.filter(([name]) => item[name] != null)
    .map(([name, title]) => `${title.split(" ")[0]} ${number(item[name])}`).join(" · ");
  const node = make("button", { type: "button", className: "tile" }, frame,
    make("span", { className: "prompt", textContent: item.prompt }),
    ...[by, item.model].filter(Boolean).map((text) =>
      make("span", { className: "facts", textContent: text, title: text })));
  node.onclick = () => { go(index); view(shown[index]); };
  node.onfocus = () => mark(index);
  return node;
}

function draw() {
  const next = shown.slice(drawn, drawn + CHUNK);
  at("grid").append(...next.map((item, n) => tile(item, drawn + n)));
  drawn += next.length;
  paint();
}

// Filters.
function matches(item) {
  const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = item.prompt.toLowerCase();
  return words.every((word) => text.includes(word))
    && (!at("model").value || item.model === at("model").value)
    && (!at("prompt").value || item.prompt === at("prompt").value)
    && !(at("repeats").checked && item.duplicate_of != null)
    && !(at("safe").checked && item.unsafe)
    && isAboveFloor(item);
}

function sortMetric() {
  return measured.some(([name]) => name === at("sort").value) ? at("sort").value : null;
}

function floor() {
  const values = all.map((item) => item[sortMetric()]).filter((value) => value != null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low + (high - low) * at("least").value / 100;
}

function isAboveFloor(item) {
  if (!sortMetric() || at("least").value === "0") return true;
  return item[sortMetric()] != null && item[sortMetric()] >= floor() - 1e-9;
}

function refresh() {
  const by = sortMetric();
  document.querySelector(".least").hidden = !by;
  if (by) at("floor").textContent = number(floor());
  shown = all.filter(matches);
  if (by) shown.sort((a, b) => (b[by] ?? -Infinity) - (a[by] ?? -Infinity) || a.index - b.index);
  drawn = current = 0;
  at("grid").replaceChildren();
  at("nothing").hidden = shown.length > 0;
  at("status").textContent = shown.length === all.length
    ? `${all.length} images` : `${shown.length} of ${all.length} images`;
  draw();
}

// Keyboard focus.
function columnCount() {
  const columns = getComputedStyle(at("grid")).gridTemplateColumns.split(" ").length;
  return Math.max(1, columns);
}

function paint() {
  [...at("grid").children].forEach((node, index) => {
    node.classList.toggle("current", index === current && document.activeElement === node);
    node.classList.toggle("selected", selected.includes(shown[index]));
  });
}

function mark(index) {
  current = index;
  paint();
}

function go(index) {
  if (!shown.length) return;
  current = Math.min(Math.max(index, 0), shown.length - 1);
  while (drawn <= current) draw();
  at("grid").children[current].focus();
  at("grid").children[current].scrollIntoView({ block: "nearest" });
}

// Viewer of one image.
function view(item) {
  opened = item;
  const list = make("dl", {}, ...facts(item).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  const actions = make("div", { className: "actions" },
    make("button", { type: "button", textContent: "Compare (c)", onclick: () => select(item) }));
  if (item.file) {
    actions.append(make("a", { textContent: "Open the file", href: item.file, target: "_blank" }));
  }
  at("viewer").querySelector(".stage").replaceChildren(picture(item, true),
    make("figure", {}, make("figcaption", { textContent: item.prompt }), list, actions));
  if (!at("viewer").open) at("viewer").showModal();
}

// Focus the tile of the last viewed image; the browser would focus the first one.
function leave() {
  const last = shown.indexOf(opened);
  opened = null;
  at("viewer").close();
  go(last);
}

function step(by) {
  go(current + by);
  view(shown[current]);
}

// Comparison of two images; differing properties are highlighted.
function select(item) {
  selected = selected.includes(item) ? selected.filter((one) => one !== item) : [...selected, item].slice(-2);
  if (at("viewer").open) leave();
  at("tray").hidden = selected.length !== 1;
  at("selected").replaceChildren(...selected.flatMap((one) =>
    [make("img", { src: one.thumb, alt: "" }), make("span", { textContent: "select another image" })]));
  paint();
  if (selected.length === 2) compare(...selected);
}

function compare(left, right) {
  const side = (item, other) => {
    const theirs = new Map(facts(other));
    const names = [...new Map([...facts(left), ...facts(right)]).keys()];
    const own = new Map(facts(item));
    const list = make("dl", {}, ...names.flatMap((name) => [
      make("dt", { textContent: name }),
      make("dd", { textContent: own.get(name) ?? "—",
        className: own.get(name) === theirs.get(name) ? "" : "differs" }),
    ]));
    return make("figure", {}, picture(item, true),
      make("figcaption", { textContent: item.prompt }), list);
  };
  at("compare").querySelector(".stage").replaceChildren(side(left, right), side(right, left));
  at("compare").showModal();
}

function clearSelection() {
  selected = [];
  at("tray").hidden = true;
  paint();
}

// Keys.
const MOVES = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: columnCount, ArrowUp: () => -columnCount() };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("compare").open) return;
  const typing = event.target.closest("input, select");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  const moved = MOVES[event.key];
  if (at("viewer").open) {
    if (moved) step(Math.sign(moved()));
    else if (event.key === "c") select(opened);
    else return;
  } else if (moved) {
    const inside = document.activeElement.closest("#grid");
    go(inside ? current + moved() : current);
  } else if (event.key === "c" && shown.length) select(shown[current]);
  else if (event.key === "/") at("words").focus();
  else if (event.key === "Escape" && selected.length) clearSelection();
  else return;
  event.preventDefault();
});

at("compare").addEventListener("close", () => { clearSelection(); go(current); });
at("viewer").addEventListener("close", () => { if (opened) leave(); });
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
at("drop").onclick = clearSelection;
at("clear").onclick = () => { at("filters").reset(); refresh(); };
at("filters").onsubmit = (event) => event.preventDefault();
at("filters").oninput = refresh;

for (const name of ["model", "prompt"]) {
  const values = [...new Set(all.map((item) => item[name]))];
  at(name).append(...values.map((value) => make("option", { value, textContent: value })));
  at(name).parentElement.hidden = values.length < 2;
}
at("sort").append(make("option", { value: "", textContent: "Original order" }),
  ...measured.map(([name, title]) => make("option", { value: name, textContent: `Best ${title} first` })));
at("sort").parentElement.hidden = !measured.length;
at("repeats").parentElement.hidden = !all.some((item) => item.duplicate_of != null);
for (const name of ["unsafe", "safe"]) {
  at(name).parentElement.hidden = !all.some((item) => item.unsafe);
}
new IntersectionObserver((entries) => {
  if (entries.some((one) => one.isIntersecting) && drawn < shown.length) draw();
}, { rootMargin: "1200px" }).observe(at("more"));
refresh();
