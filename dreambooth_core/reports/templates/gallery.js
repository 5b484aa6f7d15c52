"use strict";

const all = JSON.parse(document.getElementById("shots").textContent);
const CHUNK = 60; // tiles added at a time: thousands of images open at once
const at = (id) => document.getElementById(id);
const SCORES = [["prompt_fidelity", "prompt fidelity"], ["subject_fidelity", "subject fidelity"],
  ["similarity", "similarity"]];
const measured = SCORES.filter(([name]) => all.some((shot) => shot[name] != null));

let shown = []; // what passes the filters, in their order
let drawn = 0; // how many of them have a tile
let here = 0; // place in `shown` that the keys move
let chosen = []; // at most two, to compare
let opened = null; // the viewer's image

function make(tag, names, ...children) {
  const node = Object.assign(document.createElement(tag), names);
  node.append(...children);
  return node;
}

function number(value) {
  return value.toFixed(3).replace("-", "\u2212");
}

// What there is to say of an image: [[name, value], ...].
function facts(shot) {
  const of = [["model", shot.model], ["seed", shot.seed], ["guidance", shot.guidance],
    ["steps", shot.steps], ["scheduler", shot.scheduler], ["without", shot.negative],
    ["size", shot.width && `${shot.width} × ${shot.height}`]];
  for (const [name, title] of SCORES) of.push([title, shot[name] == null ? null : number(shot[name])]);
  if (shot.duplicate_of != null) of.push(["repeats", `image ${shot.duplicate_of}`]);
  if (shot.unsafe != null) of.push(["safety", shot.unsafe ? "flagged unsafe" : "not flagged"]);
  return of.filter(([, value]) => value != null && value !== "");
}

function picture(shot, whole) {
  const image = make("img", { alt: `${shot.prompt}, seed ${shot.seed}`, loading: "lazy",
    src: whole && shot.file ? shot.file : shot.thumb });
  if (shot.width) [image.width, image.height] = [shot.width, shot.height];
  if (Math.max(shot.width, shot.height) <= 128) image.className = "small";
  if (shot.unsafe && at("unsafe").checked) image.classList.add("blurred");
  return make("span", { className: "frame" }, image);
}

function tile(shot, place) {
  const frame = picture(shot, false);
  const badges = [];
  if (shot.duplicate_of != null) badges.push(`repeats ${shot.duplicate_of}`);
  if (shot.unsafe) badges.push("unsafe");
  if (badges.length) {
    frame.append(make("span", { className: "badges" },
      ...badges.map((text) => make("span", { className: "badge", textContent: text }))));
  }
  const by = measured.filter(([name]) => shot[name] != null)
    .map(([name, title]) => `${title.split(" ")[0]} ${number(shot[name])}`).join(" · ");
  const node = make("button", { type: "button", className: "shot" }, frame,
    make("span", { className: "said", textContent: shot.prompt }),
    ...[by, shot.model].filter(Boolean).map((text) =>
      make("span", { className: "facts", textContent: text, title: text })));
  node.onclick = () => { go(place); view(shown[place]); };
  node.onfocus = () => mark(place);
  return node;
}

function draw() {
  const next = shown.slice(drawn, drawn + CHUNK);
  at("grid").append(...next.map((shot, n) => tile(shot, drawn + n)));
  drawn += next.length;
  paint();
}

// Filters.
function fits(shot) {
  const words = at("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = shot.prompt.toLowerCase();
  return words.every((word) => text.includes(word))
    && (!at("model").value || shot.model === at("model").value)
    && (!at("prompt").value || shot.prompt === at("prompt").value)
    && !(at("repeats").checked && shot.duplicate_of != null)
    && !(at("safe").checked && shot.unsafe)
    && reaches(shot);
}

function ranked() {
  return measured.some(([name]) => name === at("sort").value) ? at("sort").value : null;
}

function floor() {
  const values = all.map((shot) => shot[ranked()]).filter((value) => value != null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low + (high - low) * at("least").value / 100;
}

function reaches(shot) {
  if (!ranked() || at("least").value === "0") return true;
  return shot[ranked()] != null && shot[ranked()] >= floor() - 1e-9;
}

function refresh() {
  const by = ranked();
  document.querySelector(".least").hidden = !by;
  if (by) at("floor").textContent = number(floor());
  shown = all.filter(fits);
  if (by) shown.sort((a, b) => (b[by] ?? -Infinity) - (a[by] ?? -Infinity) || a.index - b.index);
  drawn = here = 0;
  at("grid").replaceChildren();
  at("nothing").hidden = shown.length > 0;
  at("status").textContent = shown.length === all.length
    ? `${all.length} images` : `${shown.length} of ${all.length} images`;
  draw();
}

// Where the keys are.
function across() {
  const columns = getComputedStyle(at("grid")).gridTemplateColumns.split(" ").length;
  return Math.max(1, columns);
}

function paint() {
  [...at("grid").children].forEach((node, place) => {
    node.classList.toggle("here", place === here && document.activeElement === node);
    node.classList.toggle("one", chosen.includes(shown[place]));
  });
}

function mark(place) {
  here = place;
  paint();
}

function go(place) {
  if (!shown.length) return;
  here = Math.min(Math.max(place, 0), shown.length - 1);
  while (drawn <= here) draw();
  at("grid").children[here].focus();
  at("grid").children[here].scrollIntoView({ block: "nearest" });
}

// One image, large.
function view(shot) {
  opened = shot;
  const list = make("dl", {}, ...facts(shot).flatMap(([name, value]) =>
    [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  const hand = make("div", { className: "hand" },
    make("button", { type: "button", textContent: "Compare (c)", onclick: () => choose(shot) }));
  if (shot.file) {
    hand.append(make("a", { textContent: "Open the file", href: shot.file, target: "_blank" }));
  }
  at("viewer").querySelector(".stage").replaceChildren(picture(shot, true),
    make("figure", {}, make("figcaption", { textContent: shot.prompt }), list, hand));
  if (!at("viewer").open) at("viewer").showModal();
}

// The browser gives the focus back to the tile that was opened, not to the one looked at last.
function leave() {
  const last = shown.indexOf(opened);
  opened = null;
  at("viewer").close();
  go(last);
}

function step(by) {
  go(here + by);
  view(shown[here]);
}

// Two images, side by side; where their facts differ they stand out.
function choose(shot) {
  chosen = chosen.includes(shot) ? chosen.filter((one) => one !== shot) : [...chosen, shot].slice(-2);
  if (at("viewer").open) leave();
  at("tray").hidden = chosen.length !== 1;
  at("chosen").replaceChildren(...chosen.flatMap((one) =>
    [make("img", { src: one.thumb, alt: "" }), make("span", { textContent: "choose another one" })]));
  paint();
  if (chosen.length === 2) compare(...chosen);
}

function compare(left, right) {
  const side = (shot, other) => {
    const theirs = new Map(facts(other));
    const names = [...new Map([...facts(left), ...facts(right)]).keys()];
    const own = new Map(facts(shot));
    const list = make("dl", {}, ...names.flatMap((name) => [
      make("dt", { textContent: name }),
      make("dd", { textContent: own.get(name) ?? "—",
        className: own.get(name) === theirs.get(name) ? "" : "differs" }),
    ]));
    return make("figure", {}, picture(shot, true),
      make("figcaption", { textContent: shot.prompt }), list);
  };
  at("compare").querySelector(".stage").replaceChildren(side(left, right), side(right, left));
  at("compare").showModal();
}

function forget() {
  chosen = [];
  at("tray").hidden = true;
  paint();
}

// Keys.
const MOVES = { ArrowRight: () => 1, ArrowLeft: () => -1, ArrowDown: across, ArrowUp: () => -across() };

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
    else if (event.key === "c") choose(opened);
    else return;
  } else if (moved) {
    const inside = document.activeElement.closest("#grid");
    go(inside ? here + moved() : here);
  } else if (event.key === "c" && shown.length) choose(shown[here]);
  else if (event.key === "/") at("words").focus();
  else if (event.key === "Escape" && chosen.length) forget();
  else return;
  event.preventDefault();
});

at("compare").addEventListener("close", () => { forget(); go(here); });
at("viewer").addEventListener("close", () => { if (opened) leave(); });
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
at("drop").onclick = forget;
at("clear").onclick = () => { at("filters").reset(); refresh(); };
at("filters").onsubmit = (event) => event.preventDefault();
at("filters").oninput = refresh;

for (const name of ["model", "prompt"]) {
  const values = [...new Set(all.map((shot) => shot[name]))];
  at(name).append(...values.map((value) => make("option", { value, textContent: value })));
  at(name).parentElement.hidden = values.length < 2;
}
at("sort").append(make("option", { value: "", textContent: "As ordered" }),
  ...measured.map(([name, title]) => make("option", { value: name, textContent: `Best ${title} first` })));
at("sort").parentElement.hidden = !measured.length;
at("repeats").parentElement.hidden = !all.some((shot) => shot.duplicate_of != null);
for (const name of ["unsafe", "safe"]) {
  at(name).parentElement.hidden = !all.some((shot) => shot.unsafe);
}
new IntersectionObserver((seen) => {
  if (seen.some((one) => one.isIntersecting) && drawn < shown.length) draw();
}, { rootMargin: "1200px" }).observe(at("more"));
refresh();
