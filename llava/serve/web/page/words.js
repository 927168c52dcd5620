// The words of one token by layer: logit lens of its states, and what its value vectors would write, head by head.

import { element } from "./dom.js";

const HEADS = 6;

/** Fill a section from the answer of /api/words. */
export function showWords(section, found, name) {
  const rows = found.lens.map((ranked, layer) => {
    const heads = found.value?.[layer] || [];
    const strongest = heads.map(([word, share], head) => ({ word, share, head }))
      .sort((a, b) => b.share - a.share).slice(0, HEADS);
    return element("tr", {},
      element("td", {}, String(layer)),
      element("td", {}, ...ranked.map(([word, share]) => chip(word, share))),
      element("td", {}, ...strongest.map(({ word, share, head }) => chip(word, share, `head ${head}`))));
  });
  const heads = ["layer", "logit lens: next words", `value–output: words that heads would write (strongest ${HEADS})`];
  section.replaceChildren(
    element("h2", {}, `Words of ${name}`),
    element("p", { class: "quiet hint" }, "Read from the untouched model. Darker is more probable."),
    element("div", { class: "scroll" }, element("table", { class: "words" },
      element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", {}, text)))),
      element("tbody", {}, ...rows))),
  );
  if (found.note) section.append(element("p", { class: "quiet" }, found.note));
  section.hidden = false;
}

function chip(word, share, where = null) {
  const title = `${where ? `${where}: ` : ""}${(100 * share).toFixed(1)}%`;
  const node = element("span", { class: "chip word", title }, word || "␣");
  node.style.setProperty("--share", `${Math.round(8 + 62 * share)}%`);
  return node;
}
