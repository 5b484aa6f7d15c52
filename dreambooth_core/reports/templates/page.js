"use strict";

// Charts: Vega is embedded as base64 of gzip; colours are CSS variables of the page.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const theme = {
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
    const specification = JSON.parse(chart.querySelector("script").textContent);
    const container = chart.querySelector("div");
    // `ast`: interpret expressions, as the content security policy forbids eval
    await vegaEmbed(container, specification, { actions: false, renderer: "svg", config: theme, ast: true });
  }
}

// Dialog with the images of all models for one prompt and seed.
function enlarge(button) {
  const nodes = [];
  for (const row of button.closest(".sides").querySelectorAll(".side")) {
    const image = row.querySelectorAll("button")[button.dataset.index]?.querySelector("img");
    if (!image) continue;
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.append(row.querySelector(".who").cloneNode(true), image.alt);
    figure.append(image.cloneNode(), caption);
    nodes.push(figure);
  }
  const dialog = document.getElementById("enlarged");
  dialog.querySelector("div").replaceChildren(...nodes);
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".sides button");
  if (button) enlarge(button);
  if (event.target.id === "enlarged") event.target.close();
});

drawCharts();
