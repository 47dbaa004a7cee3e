"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 600px)");
const CHARTS = { time: "Where the step goes", memory: "Where the memory goes", pipeline: "The pipeline schedule", mesh: "Which axis lies on which network" };
const byId = (id) => document.getElementById(id);

let frontView = null;
let drawn = [];
let current = 0;
let turn = 0;

function element(tag, properties = {}, children = []) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function look() {
  const theme = structuredClone(dark.matches ? page.themes.dark : page.themes.light);
  theme.background = null;
  if (narrow.matches) {
    theme.axis.labelLimit = 170;
    theme.legend.columns = 1;
  }
  return theme;
}

// A specification whose tables came column by column, as Vega-Lite wants it: in rows.
function inRows({ tables, ...spec }) {
  const rows = ([name, columns]) => {
    const names = Object.keys(columns);
    const count = columns[names[0]].length;
    return [name, Array.from({ length: count }, (_, k) => Object.fromEntries(names.map((n) => [n, columns[n][k]])))];
  };
  return { ...spec, autosize: { type: "fit-x", contains: "padding" }, datasets: Object.fromEntries(Object.entries(tables).map(rows)) };
}

function draw(place, spec, many) {
  return vegaEmbed(place, inRows(spec), {
    actions: false,
    mode: "vega-lite",
    // Thousands of elements are slow as SVG.
    renderer: many ? "canvas" : "svg",
    tooltip: { theme: dark.matches ? "dark" : "light" },
    config: look(),
  });
}

async function drawFront() {
  frontView?.finalize();
  const result = await draw(byId("front"), page.front, false);
  frontView = result.view;
  frontView.signal("chosen", current);
  frontView.addEventListener("click", (_, item) => {
    const point = item?.datum?.point;
    if (point !== undefined) choose(point);
  });
  await frontView.runAsync();
}

async function drawPlan() {
  const mine = ++turn;
  for (const view of drawn) view.finalize();
  drawn = [];
  const point = page.points[current];
  const place = byId("charts");
  const figures = Object.entries(CHARTS)
    .filter(([name]) => point.charts[name])
    .map(([name, title]) => {
      const panels = point.charts[name].map(() => element("div", { className: "chart" }));
      const figure = element("figure", { id: `chart-${name}` }, [...panels, element("figcaption", { textContent: point.captions[name] })]);
      figure.setAttribute("aria-label", `${title}: ${point.name}`);
      return { name, panels, nodes: [element("h3", { textContent: title }), figure] };
    });
  place.replaceChildren(...figures.flatMap((each) => each.nodes));
  for (const { name, panels } of figures) {
    for (const [k, panel] of panels.entries()) {
      const result = await draw(panel, point.charts[name][k], name === "pipeline");
      if (mine !== turn) return result.finalize();
      drawn.push(result.view);
    }
  }
  byId("plan").dataset.drawn = current;
}

function launch(texts) {
  return Object.entries(texts).map(([name, text], place) => {
    const copy = element("button", { type: "button", textContent: "copy" });
    copy.setAttribute("aria-label", `copy ${name}`);
    copy.addEventListener("click", async () => {
      await navigator.clipboard?.writeText(text);
      copy.textContent = "copied";
    });
    return element("details", { open: place === 0 }, [
      element("summary", { textContent: name }), element("pre", { textContent: text, tabIndex: 0 }), copy,
    ]);
  });
}

function choose(point) {
  if (point === current && byId("plan-heading").textContent) return;
  current = point;
  const chosen = page.points[point];
  for (const row of document.querySelectorAll("[data-point]")) {
    const own = Number(row.dataset.point) === point;
    row.classList.toggle("chosen", own);
    row.querySelector("input").checked = own;
  }
  byId("plan-heading").textContent = chosen.name;
  byId("lines").replaceChildren(...chosen.lines.slice(1).map((textContent) => element("li", { textContent })));
  byId("figures").replaceChildren(...chosen.figures.flatMap(([name, textContent]) => [element("dt", { textContent: name }), element("dd", { textContent })]));
  byId("launch").replaceChildren(...launch(chosen.launch));
  frontView?.signal("chosen", point).run();
  drawPlan();
}

for (const row of document.querySelectorAll("[data-point]")) {
  row.addEventListener("click", () => choose(Number(row.dataset.point)));
  row.querySelector("input").addEventListener("change", () => choose(Number(row.dataset.point)));
}
for (const query of [dark, narrow]) {
  query.addEventListener("change", () => { drawFront(); drawPlan(); });
}
drawFront().then(() => choose(0));
