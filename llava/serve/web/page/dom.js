// Small helpers for elements; everything that comes from a server or a user goes in as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** element("p", {class: "quiet", hidden: true, onclick}, "text", child) */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** One sentence at the top of the page; empty text removes it. */
export function showError(text) {
  const place = byId("error");
  place.hidden = !text;
  place.textContent = text || "";
  if (text) place.scrollIntoView({ block: "nearest" });
}

/** A number in few digits: 0.00123 → 0.0012, 1234567 → 1.23M. */
export function short(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
  for (const [size, unit] of units) {
    if (Math.abs(value) >= size) return `${trimmed(value / size, digits)}${unit}`;
  }
  return trimmed(value, digits);
}

const trimmed = (value, digits) => String(Number(value.toPrecision(digits)));
