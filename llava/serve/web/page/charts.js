// Charts in SVG: one value per layer, thresholds that can be dragged, tokens per layer of two runs.

import { drawn, element, short } from "./dom.js";

const WIDTH = 460;
const HEIGHT = 150;
const LEFT = 44;
const RIGHT = 8;
const TOP = 22;
const BOTTOM = 22;

class Scale {
  /** From [low, high] to pixels; `log`: logarithmic. */
  constructor(low, high, from, to, log = false) {
    const map = log ? Math.log10 : (value) => value;
    const inverse = log ? (value) => 10 ** value : (value) => value;
    const [start, end] = [map(low), map(high)];
    const span = end - start || 1;
    this.at = (value) => from + ((map(Math.min(Math.max(value, low), high)) - start) / span) * (to - from);
    this.of = (pixel) => inverse(start + ((pixel - from) / (to - from)) * span);
  }
}

function frame(title, layers, x) {
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": title });
  svg.append(drawn("text", { x: LEFT, y: 12, class: "title" }, title));
  svg.append(drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "axis" }));
  const step = Math.max(1, Math.ceil(layers / 12));
  for (let layer = 0; layer < layers; layer += step) {
    svg.append(drawn("text", { x: x.at(layer), y: HEIGHT - 6, "text-anchor": "middle" }, String(layer)));
  }
  return svg;
}

function label(svg, y, value) {
  svg.append(drawn("text", { x: LEFT - 5, y: y + 4, "text-anchor": "end" }, short(value)));
  svg.append(drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "axis", "stroke-opacity": ".5" }));
}

function path(values, x, y) {
  let pen = "M";
  return values.map((value, layer) => {
    if (value === null) { pen = "M"; return ""; }
    const part = `${pen}${x.at(layer).toFixed(1)},${y.at(value).toFixed(1)}`;
    pen = "L";
    return part;
  }).join("");
}

/**
 * One positive value per layer (null: none) on a logarithmic axis, the chosen layer, and a threshold or null:
 * {value, name, label(value), onSet(value)}.
 */
export function curve({ title, values, layer, threshold }) {
  const known = values.filter((value) => value > 0);
  const all = threshold?.value > 0 ? [...known, threshold.value] : known;
  if (!known.length) return element("p", { class: "quiet" }, `${title}: nothing was measured`);
  const [low, high] = [Math.min(...all) / 3, Math.max(...all) * 3];
  const x = new Scale(0, Math.max(values.length - 1, 1), LEFT + 8, WIDTH - RIGHT - 8);
  const y = new Scale(low, high, HEIGHT - BOTTOM - 4, TOP, true);
  const svg = frame(title, values.length, x);
  label(svg, y.at(Math.min(...known)), Math.min(...known));
  label(svg, y.at(Math.max(...known)), Math.max(...known));
  svg.append(drawn("line", { x1: x.at(layer), x2: x.at(layer), y1: TOP, y2: HEIGHT - BOTTOM, class: "now" }));
  svg.append(drawn("path", { d: path(values.map((value) => (value > 0 ? value : null)), x, y), class: "line" }));
  values.forEach((value, at) => {
    if (!(value > 0)) return;
    const dot = drawn("circle", { cx: x.at(at), cy: y.at(value), r: 3, class: "dot" });
    dot.append(drawn("title", {}, `layer ${at}: ${short(value, 5)}`));
    svg.append(dot);
  });
  if (threshold) svg.append(handle(svg, y, threshold, [low, high]));
  return svg;
}

/** A threshold's line: dragged with the mouse, or moved with the arrow keys and set with Enter. */
function handle(svg, y, threshold, [low, high]) {
  let value = threshold.value;
  const line = drawn("line", { x1: LEFT, x2: WIDTH - RIGHT, class: "threshold" });
  const area = drawn("rect", { x: LEFT, width: WIDTH - LEFT - RIGHT, height: 16 });
  const text = drawn("text", { x: WIDTH - RIGHT, "text-anchor": "end" });
  const group = drawn("g", {
    class: "handle", tabindex: 0, role: "slider", "aria-label": threshold.name, "aria-valuemin": low, "aria-valuemax": high,
  }, area, line, text);
  const show = () => {
    const at = y.at(value);
    line.setAttribute("y1", at);
    line.setAttribute("y2", at);
    area.setAttribute("y", at - 8);
    text.setAttribute("y", at < TOP + 12 ? at + 13 : at - 5);
    text.textContent = `${threshold.name} ${threshold.label(value)}`;
    group.setAttribute("aria-valuenow", value);
    group.setAttribute("aria-valuetext", threshold.label(value));
  };
  const pixel = (event) => {
    const box = svg.getBoundingClientRect();
    return ((event.clientY - box.top) / box.height) * HEIGHT;
  };
  const clipped = (given) => Number(Math.min(Math.max(given, low), high).toPrecision(3));
  const move = (event) => { value = clipped(y.of(pixel(event))); show(); };
  const release = () => {
    group.removeEventListener("pointermove", move);
    if (value !== threshold.value) threshold.onSet(value);
  };
  group.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    group.setPointerCapture(event.pointerId);
    group.addEventListener("pointermove", move);
    group.addEventListener("pointerup", release, { once: true });
  });
  group.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: -4, ArrowDown: 4 };
    if (steps[event.key]) {
      event.preventDefault();
      value = clipped(y.of(y.at(value) + steps[event.key]));
      show();
    } else if (event.key === "Enter") threshold.onSet(value);
  });
  show();
  return group;
}

/** Tokens that enter each layer: {a: [..], b: [..] or undefined}. */
export function tokensPerLayer(runs, layer) {
  const all = Object.values(runs).filter(Boolean);
  const layers = Math.max(...all.map((run) => run.length));
  const x = new Scale(0, layers, LEFT + 8, WIDTH - RIGHT - 8);
  const y = new Scale(0, Math.max(...all.flat()), HEIGHT - BOTTOM, TOP);
  const svg = frame("tokens that enter each layer", layers, { at: (at) => x.at(at + 0.5) });
  label(svg, y.at(Math.max(...all.flat())), Math.max(...all.flat()));
  svg.append(drawn("line", { x1: x.at(layer + 0.5), x2: x.at(layer + 0.5), y1: TOP, y2: HEIGHT - BOTTOM, class: "now" }));
  for (const [side, values] of Object.entries(runs)) {
    if (!values) continue;
    const steps = values.map((value, at) => `${at ? "L" : "M"}${x.at(at)},${y.at(value)}L${x.at(at + 1)},${y.at(value)}`);
    const line = drawn("path", { d: steps.join(""), class: `line-${side}` });
    line.append(drawn("title", {}, `${side.toUpperCase()}: ${values.join(", ")}`));
    svg.append(line);
  }
  return svg;
}
