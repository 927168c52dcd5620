// A run's answers: filters, pages, and one entry with its tokens; the server reads files, the model does not run.

import { fetchImage, request } from "./api.js";
import { marked } from "./answers.js";
import { tokensPerLayer } from "./charts.js";
import { byId, element, short, showError } from "./dom.js";
import { TokenPicture, legendOf } from "./picture.js";

export class GalleryView {
  /** `onAsk({question, pictures})`: the entry is to be asked again. */
  constructor(about, onAsk) {
    this.about = about;
    this.onAsk = onAsk;
    this.page = 0;
    this.kind = element("select", { id: "kind" }, element("option", { value: "" }, "all kinds"),
      ...Object.entries(about.kinds).map(([kind, count]) => element("option", { value: kind }, `${kind} (${count})`)));
    this.layer = element("select", { id: "filter-layer" }, element("option", { value: "" }, "any"),
      ...about.layers.map((layer) => element("option", { value: layer }, String(layer))));
    const limits = { type: "number", min: 0, max: about.most_kept };
    this.low = element("input", { ...limits, id: "kept-low", placeholder: "0" });
    this.high = element("input", { ...limits, id: "kept-high", placeholder: about.most_kept });
    const filters = element("div", { class: "filters" },
      element("label", {}, "Kind ", this.kind), element("label", {}, "Filter layer ", this.layer),
      element("label", {}, "Kept tokens ", this.low, " to ", this.high));
    filters.addEventListener("change", () => { this.page = 0; this.load(); });
    this.list = element("ol", { class: "entries" });
    this.count = element("span", { class: "quiet", role: "status" });
    this.back = element("button", { type: "button", onclick: () => this.turn(-1) }, "Back");
    this.next = element("button", { type: "button", onclick: () => this.turn(1) }, "Next");
    const title = about.against ? `${about.run} against ${about.against}` : about.run;
    byId("gallery").replaceChildren(element("h2", {}, title),
      about.note ? element("p", { class: "quiet" }, about.note) : "", filters, this.list,
      element("div", { class: "row" }, this.back, this.next, this.count));
  }

  turn(step) {
    this.page += step;
    this.load();
  }

  async load() {
    const query = new URLSearchParams({
      kind: this.kind.value, layer: this.layer.value, low: this.low.value, high: this.high.value, page: this.page,
    });
    try {
      const found = await request(`/api/gallery?${query}`);
      this.list.replaceChildren(...found.rows.map((row) => this.#line(row)));
      const first = found.per_page * this.page;
      this.count.textContent = found.total
        ? `${first + 1} to ${first + found.rows.length} of ${found.total}` : "no answer is of this kind";
      this.back.disabled = !this.page;
      this.next.disabled = first + found.rows.length >= found.total;
    } catch (error) {
      showError(error.message);
    }
  }

  #line(row) {
    const answers = row.against === null ? row.text : `${row.against} → ${row.text}`;
    const kept = row.kept === null ? "" : ` · ${row.kept} tokens kept after layer ${row.filter_layer}`;
    return element("li", {}, element("button", { type: "button", onclick: () => this.open(row.number) },
      element("span", { class: `kind ${row.kind}` }, row.kind + kept),
      element("span", {}, row.prompt || ""), element("b", {}, answers)));
  }

  async open(number) {
    const section = byId("entry");
    showError("");
    try {
      const entry = await request(`/api/gallery/${number}`);
      const pictures = await Promise.all([...Array(entry.images).keys()].map((at) => fetchImage(`/api/gallery/${number}/image/${at}`)));
      section.hidden = false;
      section.replaceChildren(...await this.#entry(entry, pictures));
      section.scrollIntoView({ block: "nearest" });
    } catch (error) {
      showError(error.message);
    }
  }

  async #entry(entry, pictures) {
    const other = entry.other;
    const answers = element("div", { class: "pair" }, answerOf("A", this.about.run, entry.run, other),
      other ? answerOf("B", this.about.against, other, entry.run) : null);
    const parts = [
      element("span", { class: `kind ${entry.kind}` }, `${entry.kind} · question ${entry.question_id}`),
      element("h2", {}, entry.prompt), answers,
    ];
    if (entry.note) parts.push(element("p", { class: "quiet" }, entry.note));
    if (pictures.length) {
      parts.push(element("button", { type: "button", onclick: () => this.onAsk({ question: entry.prompt, pictures }) }, "Ask this again"));
    }
    if (!entry.layout?.panels.length) {
      parts.push(...pictures.map((url) => element("img", { src: url, alt: "the question's picture", class: "plain" })));
      return parts;
    }
    for (const [at, url] of pictures.entries()) parts.push(await layered(entry, at, url));
    return parts;
  }
}

function answerOf(side, name, answer, other) {
  const trace = answer.trace;
  const figures = `${short(trace.mean_tokens_per_layer)} tokens per layer · ${short(100 * trace.flops_all_tokens / trace.dense_flops_all_tokens)}% of dense FLOPs · ${short(trace.kv_bytes)}B KV`;
  return element("article", { class: "answer" },
    element("h3", {}, element("b", { class: `side-${side.toLowerCase()}` }, side), ` ${name}`),
    element("p", { class: "text" }, ...(other ? marked(answer.text, other.text) : [answer.text])),
    element("p", { class: "quiet hint" }, figures));
}

/** One picture of an entry with a layer slider, from the trace in the file. */
async function layered(entry, at, url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = element("canvas", { class: "entry-picture", role: "img", "aria-label": "picture with its visual tokens" });
  const picture = new TokenPicture(canvas, () => {});
  const panels = entry.layout.panels.filter((panel) => panel.image === at && !panel.thumbnail);
  const states = entry.run.states;
  const legend = element("ul", { class: "legend" });
  const shown = element("output", {});
  const chart = element("div", {});
  const slider = element("input", { type: "range", min: 0, max: states.length - 1, value: 0, "aria-label": "layer" });
  const show = () => {
    const layer = Number(slider.value);
    shown.textContent = `${layer} of ${states.length - 1}`;
    picture.show({ image, panels, states: states[layer], heat: null });
    legend.replaceChildren(...legendOf({ states: states[layer] }));
    chart.replaceChildren(tokensPerLayer({ a: entry.run.trace.tokens_per_layer, b: entry.other?.trace.tokens_per_layer }, layer));
  };
  slider.addEventListener("input", show);
  slider.value = entry.run.trace.filter_layer === null ? 0 : Math.min(entry.run.trace.filter_layer + 1, states.length - 1);
  show();
  return element("div", { class: "split" },
    element("div", {}, canvas, element("label", {}, "Layer ", shown), slider, legend), element("div", {}, chart));
}
