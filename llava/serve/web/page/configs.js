// Choosing a pruning config: presets, or the JSON of any method.

import { element } from "./dom.js";

export class ConfigEditor {
  /** `onChange` is called when another config was chosen; `optional`: it may be none at all. */
  constructor(fieldset, about, { first, optional, onChange }) {
    this.onChange = onChange || (() => {});
    this.presets = about.presets;
    const names = [...(optional ? ["nothing"] : []), ...Object.keys(this.presets), "other …"];
    this.select = element("select", { "aria-label": `${fieldset.id.slice(-1).toUpperCase()}: config` });
    this.select.append(...names.map((name) => element("option", { value: name }, name)));
    this.text = element("textarea", {
      class: "json", spellcheck: "false", "aria-label": `${fieldset.id.slice(-1).toUpperCase()}: config as JSON`,
    });
    const methods = Object.keys(about.methods).join(", ");
    this.details = element("details", {}, element("summary", {}, "settings as JSON"), this.text,
      element("small", { class: "quiet" }, `methods: ${methods}`));
    fieldset.append(this.select, this.details);
    this.select.addEventListener("change", () => this.choose(this.select.value));
    this.text.addEventListener("input", () => { this.select.value = "other …"; this.onChange(); });
    this.choose(first);
  }

  choose(name) {
    this.select.value = name;
    if (this.presets[name]) this.text.value = pretty(this.presets[name]);
    if (name === "other …") this.details.open = true;
    this.details.hidden = name === "nothing";
    this.onChange();
  }

  /** Null where nothing is to be compared; throws one sentence for bad JSON. */
  get config() {
    if (this.select.value === "nothing") return null;
    try {
      return JSON.parse(this.text.value);
    } catch (error) {
      throw new Error(`the config is not JSON: ${error.message}`);
    }
  }

  /** Set a config of no preset, called `name`. */
  set(config, name = "other …") {
    if (![...this.select.options].some((option) => option.value === name)) {
      this.select.insertBefore(element("option", { value: name }, name), this.select.lastChild);
    }
    this.select.value = name;
    this.details.hidden = false;
    this.text.value = pretty(config);
    this.onChange();
  }
}

/** JSON with one key a line, lists on one line. */
function pretty(config) {
  const lines = Object.entries(config).map(([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)}`);
  return `{\n${lines.join(",\n")}\n}`;
}
