// Two answers side by side: words that differ, log-probabilities, and the table of costs.

import { element, short } from "./dom.js";

/** Fill an answer's card; `other` is the other side's result or null. */
export function showAnswer(card, side, result, other) {
  const name = element("h3", {}, element("b", { class: `side-${side}` }, side.toUpperCase()), ` ${result.name}`);
  const text = element("p", { class: "text" });
  const ended = { length: "stopped at the longest length", stop: "" }[result.finish] || "";
  if (other?.text !== undefined && result.done && other.done) text.append(...marked(result.text, other.text));
  else text.append(result.text || (result.done ? "(no answer)" : "…"));
  card.replaceChildren(name, text, chips(result, other), element("p", { class: "quiet hint" }, ended));
}

/** The words of a text, those that the other text does not have at that place marked. */
export function marked(text, other) {
  const words = text.split(/(\s+)/);
  const same = commonWords(words, other.split(/(\s+)/));
  return words.map((word, place) => (same.has(place) || !word.trim() ? word : element("mark", {}, word)));
}

/** Places in `a` of a longest common subsequence of two lists; long texts are compared from both ends only. */
function commonWords(a, b) {
  const same = new Set();
  if (a.length * b.length > 4e6) {
    for (let i = 0; i < Math.min(a.length, b.length) && a[i] === b[i]; i++) same.add(i);
    return same;
  }
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { same.add(i); i++; j++; } else if (lengths[i + 1][j] >= lengths[i][j + 1]) i++;
    else j++;
  }
  return same;
}

/** One chip per token with its log-probability; beside an equal beginning of the other answer, with the difference. */
function chips(result, other) {
  const box = element("div", { class: "chips", "aria-label": "tokens and log-probabilities" });
  let alike = Boolean(other?.done);
  result.tokens.forEach((token, place) => {
    const theirs = other?.tokens?.[place];
    const comparable = alike && theirs !== undefined;
    alike = comparable && theirs.token === token.token;
    const difference = comparable ? token.logprob - theirs.logprob : null;
    const notes = [`log-probability ${token.logprob.toFixed(3)}`];
    if (comparable) notes.push(alike ? `difference ${difference.toFixed(3)}` : `the other answer has ${JSON.stringify(theirs.token)}`);
    const differs = comparable && (!alike || Math.abs(difference) > 0.05);
    box.append(element("span", { class: differs ? "chip differs" : "chip", title: notes.join("; ") },
      `${token.token.trim() || "␣"} ${token.logprob.toFixed(2)}`));
  });
  return box;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

const FIGURES = [
  ["visual tokens, last layer", (r) => r.trace.visual_per_layer.at(-1)],
  ["filter layer", (r) => r.trace.filter_layer],
  ["exit layer", (r) => r.trace.exit_layer],
  ["tokens per layer (mean)", (r) => r.trace.mean_tokens_per_layer],
  ["FLOPs, all tokens", (r) => r.trace.flops_all_tokens],
  ["share of dense FLOPs", (r) => r.trace.flops_all_tokens / r.trace.dense_flops_all_tokens],
  ["KV cache", (r) => r.trace.kv_bytes, "B"],
  ["image", (r) => r.milliseconds.vision, "ms"],
  ["first token", (r) => r.milliseconds.first_token, "ms"],
  ["per further token", (r) => (r.usage.completion_tokens > 1 ? r.milliseconds.decode / (r.usage.completion_tokens - 1) : null), "ms"],
  ["whole answer", (r) => r.milliseconds.first_token + r.milliseconds.decode, "ms"],
  ["log-probability of the answer", (r) => sum(r.tokens.map((token) => token.logprob))],
];

function withUnit(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "ms") return `${value.toFixed(value < 10 ? 2 : 0)} ms`;
  return unit ? `${short(value)}${unit}` : short(value);
}

/** Fill the table of costs from the results that are done. */
export function showFigures(table, results) {
  const sides = Object.entries(results).filter(([, result]) => result?.done);
  table.hidden = !sides.length;
  const both = sides.length === 2;
  const head = ["", ...sides.map(([side, result]) => `${side.toUpperCase()} ${result.name}`), ...(both ? ["B / A"] : [])];
  const rows = FIGURES.map(([name, of, unit]) => {
    const values = sides.map(([, result]) => of(result));
    const comparable = both && name !== "image" && values.every((value) => value > 0);
    const texts = [name, ...values.map((value) => withUnit(value, unit))];
    if (both) texts.push(comparable ? short(values[1] / values[0]) : "");
    return element("tr", {}, ...texts.map((text) => element("td", {}, text)));
  });
  table.replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows),
  );
}
