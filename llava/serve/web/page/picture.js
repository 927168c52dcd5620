// The picture with its visual tokens: states or heat by layer, a cursor, and the brush.

import { element } from "./dom.js";

/** States as the server numbers them (inspection.py), in this order. */
export const STATES = [
  { name: "kept, read by text", paint: null },
  { name: "merged into the sink", paint: { fill: "rgba(60, 120, 255, .42)" } },
  { name: "sink", paint: { fill: "rgba(255, 150, 30, .35)", edge: "#ff8c00" } },
  { name: "kept, not read in this layer", paint: { fill: "rgba(150, 90, 220, .30)", hatch: "rgba(170, 110, 240, .9)" } },
  { name: "has left", paint: { fill: "rgba(120, 122, 128, .78)" } },
  { name: "left, never read", paint: { fill: "rgba(40, 42, 48, .82)", cross: "rgba(210, 210, 215, .7)" } },
];
const HEAT = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const FORCED = { stay: "#21c063", go: "#ff4d4d" };
const WIDEST = 1400;

export class TokenPicture {
  /**
   * `onToken(index, why)`: a token was hovered ("hover"), chosen ("choose") or brushed ("brush").
   * Tokens are numbers of visual tokens of the prompt, from 0.
   */
  constructor(canvas, onToken) {
    this.canvas = canvas;
    this.onToken = onToken;
    this.forced = new Map();
    this.brush = "look";
    this.cursor = null;
    this.painting = null;
    canvas.addEventListener("pointermove", (event) => this.#pointed(event));
    canvas.addEventListener("pointerdown", (event) => this.#pressed(event));
    canvas.addEventListener("pointerup", () => { this.painting = null; });
    canvas.addEventListener("pointerleave", () => this.onToken(null, "hover"));
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /**
   * Draw. `view`: {image: HTMLImageElement, panels, states: [V] or null, heat: [V] or null, reversed} of one layer;
   * `panels` as the server gives them, those of this picture.
   */
  show(view) {
    this.view = view;
    const { image, panels } = view;
    const edges = (pick, choose, whole) => choose(whole, ...panels.map((panel) => panel.box[pick]));
    const bounds = [edges(0, Math.min, 0), edges(1, Math.min, 0), edges(2, Math.max, 1), edges(3, Math.max, 1)];
    const width = image.naturalWidth * (bounds[2] - bounds[0]);
    const height = image.naturalHeight * (bounds[3] - bounds[1]);
    const scale = Math.min(Math.max(700 / width, 1), WIDEST / width, WIDEST / height);
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.place = (x, y) => [
      ((x - bounds[0]) / (bounds[2] - bounds[0])) * this.canvas.width,
      ((y - bounds[1]) / (bounds[3] - bounds[1])) * this.canvas.height,
    ];
    this.cells = panels.flatMap((panel) => cellsOf(panel, this.place));
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const { image, states, heat } = this.view;
    context.fillStyle = "#7f7f7f";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    const [left, top] = this.place(0, 0);
    const [right, bottom] = this.place(1, 1);
    context.filter = heat ? "grayscale(1) brightness(.8)" : "none";
    context.drawImage(image, left, top, right - left, bottom - top);
    context.filter = "none";
    const colours = heat ? heatColours(heat, this.view.reversed) : null;
    for (const cell of this.cells) {
      if (colours) {
        context.fillStyle = colours(cell.token);
        context.fillRect(cell.x, cell.y, cell.width, cell.height);
      } else if (states) paint(context, cell, STATES[states[cell.token]].paint);
      const forced = this.forced.get(cell.token);
      if (forced) outline(context, cell, FORCED[forced], 3);
    }
    const here = this.cells.find((cell) => cell.token === this.cursor);
    if (here) outline(context, here, "#ffffff", 2, "#000000");
  }

  #pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  #cellAt([x, y]) {
    return this.cells?.find((cell) => x >= cell.x && x < cell.x + cell.width && y >= cell.y && y < cell.y + cell.height);
  }

  #pointed(event) {
    const point = this.#pointOf(event);
    const cell = this.#cellAt(point);
    if (this.painting) this.#stroke(this.painting, point);
    if (this.painting) this.painting = point;
    if (!cell || cell.token === this.cursor) return;
    this.cursor = cell.token;
    this.onToken(cell.token, "hover");
    this.draw();
  }

  /** Brush every token between two points of the mouse, which may be far apart. */
  #stroke([x, y], [toX, toY]) {
    const steps = 1 + Math.ceil(Math.hypot(toX - x, toY - y) / 8);
    for (let step = 1; step <= steps; step++) {
      const cell = this.#cellAt([x + ((toX - x) * step) / steps, y + ((toY - y) * step) / steps]);
      if (cell && this.forced.get(cell.token) !== this.brush) this.#force(cell.token, this.brush);
    }
  }

  #pressed(event) {
    const point = this.#pointOf(event);
    const cell = this.#cellAt(point);
    if (!cell) return;
    this.cursor = cell.token;
    if (this.brush === "look") this.onToken(cell.token, "choose");
    else {
      this.painting = point;
      this.#force(cell.token, this.brush);
    }
    this.draw();
  }

  #force(token, how) {
    if (how === "clear") this.forced.delete(token);
    else this.forced.set(token, how);
    this.onToken(token, "brush");
  }

  #key(event) {
    if (!this.cells?.length) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const brushes = { s: "stay", g: "go", c: "clear" };
    if (steps[event.key]) {
      event.preventDefault();
      const here = this.cells.find((cell) => cell.token === this.cursor) || this.cells[0];
      const [dx, dy] = steps[event.key];
      const next = this.cells.find((cell) => cell.panel === here.panel
        && cell.column === here.column + dx && cell.row === here.row + dy);
      this.cursor = (next || here).token;
      this.onToken(this.cursor, "hover");
    } else if (this.cursor !== null && event.key === "Enter") this.onToken(this.cursor, "choose");
    else if (this.cursor !== null && brushes[event.key]) this.#force(this.cursor, brushes[event.key]);
    else return;
    this.draw();
  }

  /** Row and column of a token in its grid, counted from 1. */
  placeOf(token) {
    const cell = this.cells.find((one) => one.token === token);
    return cell ? [cell.row + 1, cell.column + 1] : null;
  }
}

function cellsOf(panel, place) {
  const [left, top, right, bottom] = panel.box;
  const rows = panel.cells.length;
  const columns = panel.cells[0].length;
  const cells = panel.cells.flatMap((tokens, row) => tokens.map((token, column) => {
    const [x, y] = place(left + ((right - left) * column) / columns, top + ((bottom - top) * row) / rows);
    const [x2, y2] = place(left + ((right - left) * (column + 1)) / columns, top + ((bottom - top) * (row + 1)) / rows);
    return { token, row, column, panel, x, y, width: x2 - x, height: y2 - y };
  }));
  return cells.filter((cell) => cell.token >= 0);
}

function paint(context, { x, y, width, height }, how) {
  if (!how) return;
  context.fillStyle = how.fill;
  context.fillRect(x, y, width, height);
  if (how.hatch) strokes(context, how.hatch, [[x, y + height, x + width, y]]);
  if (how.cross) strokes(context, how.cross, [[x + 3, y + 3, x + width - 3, y + height - 3], [x + width - 3, y + 3, x + 3, y + height - 3]]);
  if (how.edge) outline(context, { x, y, width, height }, how.edge, 4);
}

function strokes(context, colour, lines) {
  context.strokeStyle = colour;
  context.lineWidth = 1.2;
  context.beginPath();
  for (const [x1, y1, x2, y2] of lines) {
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
  }
  context.stroke();
}

function outline(context, { x, y, width, height }, colour, thick, under = null) {
  const inset = thick / 2;
  const box = [x + inset, y + inset, width - thick, height - thick];
  if (under) {
    context.lineWidth = thick + 2;
    context.strokeStyle = under;
    context.strokeRect(...box);
  }
  context.lineWidth = thick;
  context.strokeStyle = colour;
  context.strokeRect(...box);
}

/** A function from a token to its colour: from the smallest to the largest value, roots of shares; pruned tokens grey. */
function heatColours(heat, reversed) {
  const known = heat.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return (token) => {
    const value = heat[token];
    if (value === null) return STATES[4].paint.fill;
    let share = (value - low) / (high - low || 1);
    if (reversed) share = 1 - share;
    return colourAt(Math.sqrt(share), 0.72);
  };
}

function colourAt(share, alpha) {
  const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const from = HEAT[Math.floor(at)];
  const to = HEAT[Math.ceil(at)];
  const mixed = from.map((one, channel) => Math.round(one + (to[channel] - one) * (at % 1)));
  return `rgba(${mixed.join(",")},${alpha})`;
}

/** The legend of states with their counts, or of a heat map. */
export function legendOf({ states, heat, reversed, name }) {
  if (heat) {
    const known = heat.filter((value) => value !== null);
    const ends = [Math.min(...known), Math.max(...known)];
    if (reversed) ends.reverse();
    const bar = swatch(120, (context) => {
      for (let x = 0; x < 120; x++) {
        context.fillStyle = colourAt(Math.sqrt(x / 119), 1);
        context.fillRect(x, 0, 1, 14);
      }
    });
    if (!known.length) return [element("li", {}, `${name}: no visual token is left in this layer`)];
    return [element("li", {}, `${name} ${ends[0].toPrecision(3)}`, bar, ends[1].toPrecision(3))];
  }
  return STATES.map((state, number) => {
    const count = states.filter((one) => one === number).length;
    const box = swatch(16, (context) => {
      context.fillStyle = "#9fc5a8";
      context.fillRect(0, 0, 16, 14);
      paint(context, { x: 0, y: 0, width: 16, height: 14 }, state.paint);
    });
    return element("li", { class: count ? "" : "quiet" }, box, `${state.name}: ${count}`);
  });
}

function swatch(width, draw) {
  const canvas = element("canvas", { width, height: 14, "aria-hidden": "true" });
  draw(canvas.getContext("2d"));
  return canvas;
}
