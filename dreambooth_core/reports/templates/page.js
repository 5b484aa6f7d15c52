"use strict";

// Charts: Vega's library is in the page, packed; a chart's colours are the page's own variables.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const look = {
  background: "transparent",
  font: getComputedStyle(document.body).fontFamily,
  view: { stroke: null },
  axis: {
    labelColor: "var(--soft)", titleColor: "var(--soft)", titleFontWeight: "normal",
    gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)",
    labelFontSize: 11, titleFontSize: 11,
  },
  axisQuantitative: { tickCount: 5 },
  legend: { labelColor: "var(--soft)", labelFontSize: 12, symbolType: "circle", symbolOpacity: 1 },
  line: { strokeWidth: 2 },
};

async function drawCharts() {
  const library = document.getElementById("charts-library");
  if (!library) return;
  const code = document.createElement("script");
  code.textContent = await unpack(library.textContent);
  document.head.append(code);
  for (const chart of document.querySelectorAll(".chart")) {
    const wanted = JSON.parse(chart.querySelector("script").textContent);
    const place = chart.querySelector("div");
    // `ast`: expressions are interpreted, since the page allows no code made of strings
    await vegaEmbed(place, wanted, { actions: false, renderer: "svg", config: look, ast: true });
  }
}

// A closer look: all sides' pictures of one prompt and seed, beside each other.
function lookCloser(place) {
  const nodes = [];
  for (const row of place.closest(".sides").querySelectorAll(".side")) {
    const image = row.querySelectorAll("button")[place.dataset.place]?.querySelector("img");
    if (!image) continue;
    const figure = document.createElement("figure");
    const words = document.createElement("figcaption");
    words.append(row.querySelector(".who").cloneNode(true), image.alt);
    figure.append(image.cloneNode(), words);
    nodes.push(figure);
  }
  const dialog = document.getElementById("closer");
  dialog.querySelector("div").replaceChildren(...nodes);
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const place = event.target.closest(".sides button");
  if (place) lookCloser(place);
  if (event.target.id === "closer") event.target.close();
});

drawCharts();
