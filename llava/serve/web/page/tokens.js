// The tokens of an answer: picture, layers, curves with thresholds, brush and controls.

import { curve, tokensPerLayer } from "./charts.js";
import { byId, element, short } from "./dom.js";
import { STATES, TokenPicture, legendOf } from "./picture.js";

const same = (value) => value;
const CURVES = [ // cosines crowd below 1: their distance from it is drawn
  { metric: "cosine", title: "1 − smallest cosine per layer", key: "layer_threshold", map: (cosine) => 1 - cosine },
  { metric: "l2", title: "largest L2 per layer", key: "tokens_threshold", map: same },
];
const NAMES = { cosine: "cosine", l2: "L2", attention: "attention" };

export class TokensView {
  /**
   * Callbacks: onThreshold(side, key, value), onWords(index, position), onBrush(side, stay, go) with positions,
   * onControl(side, kind).
   */
  constructor(callbacks) {
    this.callbacks = callbacks;
    this.view = { side: "a", layer: null, metric: "states", picture: 0, thumbnail: false };
    this.images = [];
    this.picture = new TokenPicture(byId("picture"), (index, why) => this.#token(index, why));
    byId("layer").addEventListener("input", () => { this.view.layer = Number(byId("layer").value); this.draw(); });
    byId("metric").addEventListener("change", () => { this.view.metric = byId("metric").value; this.draw(); });
    byId("thumbnail").addEventListener("change", () => { this.view.thumbnail = byId("thumbnail").checked; this.draw(); });
    for (const radio of document.getElementsByName("brush")) {
      radio.addEventListener("change", () => { this.picture.brush = radio.value; });
    }
    byId("brush-clear").addEventListener("click", () => { this.picture.forced.clear(); this.#brushed(); this.picture.draw(); });
    byId("brush-ask").addEventListener("click", () => callbacks.onBrush(this.side, this.#forced("stay"), this.#forced("go")));
    for (const kind of ["random", "downsampled"]) byId(kind).addEventListener("click", () => callbacks.onControl(this.side, kind));
  }

  /** The side whose tokens are shown. */
  get side() {
    return this.results?.[this.view.side]?.inspection ? this.view.side : Object.keys(this.results || {})[0];
  }

  async show(results, urls) {
    this.results = Object.fromEntries(Object.entries(results).filter(([, result]) => result?.inspection));
    byId("tokens").hidden = !Object.keys(this.results).length;
    if (byId("tokens").hidden) return;
    const shown = Object.values(this.results)[0].inspection.frames || urls;
    if (shown.join() !== this.shownUrls) {
      this.shownUrls = shown.join();
      this.picture.forced.clear();
      this.images = await Promise.all(shown.map(decoded));
    }
    this.view.picture = Math.min(this.view.picture, this.images.length - 1);
    this.draw();
  }

  draw() {
    const side = this.side;
    const found = this.results[side].inspection;
    const { view } = this;
    const layers = found.states.length;
    if (view.layer === null) view.layer = Math.min((found.trace.filter_layer ?? 0) + 1, layers - 1);
    view.layer = Math.min(view.layer, layers - 1);
    this.#controls(side, found, layers);
    const heat = view.metric === "states" ? null : found.influence[view.metric][view.layer];
    const states = found.states[view.layer];
    const reversed = view.metric === "cosine"; // a small cosine is a large influence
    const panels = found.panels.filter((panel) => panel.image === view.picture);
    const small = panels.some((panel) => panel.thumbnail);
    byId("thumbnail-label").hidden = !small;
    const shown = panels.filter((panel) => panel.thumbnail === (small && view.thumbnail));
    this.picture.show({ image: this.images[view.picture], panels: shown, states, heat, reversed });
    byId("legend").replaceChildren(...legendOf({ states, heat, reversed, name: NAMES[view.metric] }));
    if (found.note) byId("readout").textContent = found.note;
    this.#charts(side, found);
    this.#brushed();
  }

  #controls(side, found, layers) {
    const { view } = this;
    byId("sides").replaceChildren(...Object.keys(this.results).map((one) => element("button", {
      type: "button", "aria-pressed": String(one === side), onclick: () => { view.side = one; this.draw(); },
    }, `${one.toUpperCase()} ${this.results[one].name}`)));
    byId("layer").max = layers - 1;
    byId("layer").value = view.layer;
    byId("metric").value = view.metric;
    byId("thumbnail").checked = view.thumbnail;
    const rule = found.trace.rules[view.layer];
    const dense = rule.text === "dense" && rule.visual === "dense";
    const left = found.trace.visual_per_layer[view.layer];
    byId("layer-shown").textContent = `${view.layer} of ${layers - 1}: ${left} visual tokens`
      + (dense ? "" : `; text rows ${rule.text}, visual rows ${rule.visual}`);
    byId("strip").hidden = this.images.length < 2;
    const drawn = (at) => found.panels.some((panel) => panel.image === at) || !found.panels.length;
    byId("strip").replaceChildren(...this.images.map((image, at) => drawn(at) && element("button", {
      type: "button", "aria-label": `picture ${at + 1}`, "aria-pressed": String(at === view.picture),
      onclick: () => { view.picture = at; this.draw(); },
    }, element("img", { src: image.src, alt: "" }))).filter(Boolean));
    byId("random").disabled = byId("downsampled").disabled = !found.trace.cuts.length;
  }

  #charts(side, found) {
    const { config } = this.results[side];
    const charts = CURVES.map(({ metric, title, key, map }) => {
      const set = (given) => this.callbacks.onThreshold(side, key, rounded(map(given)));
      const threshold = typeof config[key] === "number"
        ? { value: map(config[key]), name: key, label: (value) => String(rounded(map(value))), onSet: set } : null;
      const values = found.curves[metric].map((value) => (value === null ? null : map(value)));
      return curve({ title, values, layer: this.view.layer, threshold });
    });
    byId("curves").replaceChildren(...charts);
    const runs = Object.fromEntries(Object.entries(this.results).map(([one, { inspection }]) => [one, inspection.trace.tokens_per_layer]));
    byId("per-layer").replaceChildren(tokensPerLayer(runs, this.view.layer));
  }

  #token(index, why) {
    const found = this.results?.[this.side]?.inspection;
    if (!found) return;
    if (index === null) return;
    const { layer } = this.view;
    const position = found.visual[index];
    if (why === "choose") this.callbacks.onWords(index, position);
    if (why === "brush") this.#brushed();
    const numbers = Object.entries(NAMES)
      .map(([metric, name]) => `${name} ${short(found.influence[metric][layer][index], 4)}`).join(", ");
    const place = this.picture.placeOf(index);
    const where = place ? `row ${place[0]}, column ${place[1]}` : "";
    byId("readout").textContent = `token ${index} (${where}; position ${position}), layer ${layer}: ${numbers}; `
      + `${STATES[found.states[layer][index]].name}`;
  }

  #forced(how) {
    const { visual } = this.results[this.side].inspection;
    return [...this.picture.forced].filter(([, one]) => one === how).map(([index]) => visual[index]);
  }

  #brushed() {
    byId("brush-ask").disabled = !this.picture.forced.size;
    byId("brush-clear").disabled = !this.picture.forced.size;
  }
}

const rounded = (value) => Number(value.toPrecision(7));

async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
