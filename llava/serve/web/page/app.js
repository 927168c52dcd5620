// The page: state, asking, and what happens when something is clicked. Drawing is in the other modules.

import { fetchImage, isVideo, messagesOf, readAsUrl, request, streamAnswer } from "./api.js";
import { showAnswer, showFigures } from "./answers.js";
import { ConfigEditor } from "./configs.js";
import { byId, element, showError } from "./dom.js";
import { GalleryView } from "./gallery.js";
import { packed, saveJson, savePicture, unpacked } from "./share.js";
import { TokensView } from "./tokens.js";
import { showWords } from "./words.js";

const state = { pictures: [], asked: null, results: {}, running: null };
let about;
let editors;
let tokens;

async function start() {
  about = await request("/api/about");
  byId("model").textContent = `${about.model} · ${about.layers} layers`;
  const onChange = () => { byId("answer-b").hidden = editors?.b.select.value === "nothing"; };
  editors = {
    a: new ConfigEditor(byId("config-a"), about, { first: "as started" }),
    b: new ConfigEditor(byId("config-b"), about, { first: "dense", optional: true, onChange }),
  };
  const most = Math.min(about.limits.new_tokens, 512);
  byId("new-tokens").max = most;
  showLength();
  tokens = new TokensView({ onThreshold: rerun, onWords: askWords, onBrush: askForced, onControl: askControl });
  listen();
  if (about.gallery) {
    const gallery = new GalleryView(about.gallery, askAgain);
    byId("show-gallery").hidden = byId("show-ask").hidden = false;
    byId("show-gallery").addEventListener("click", () => showTab("gallery"));
    byId("show-ask").addEventListener("click", () => showTab("ask"));
    await gallery.load();
    showTab("gallery");
  }
  await restore();
}

function showTab(name) {
  byId("ask-view").hidden = name !== "ask";
  byId("gallery-view").hidden = name !== "gallery";
  byId("show-ask").setAttribute("aria-pressed", name === "ask");
  byId("show-gallery").setAttribute("aria-pressed", name === "gallery");
}

function listen() {
  const drop = byId("drop");
  const files = byId("files");
  drop.addEventListener("click", (event) => { if (event.target.tagName !== "BUTTON") files.click(); });
  drop.addEventListener("keydown", (event) => { if (event.target === drop && [" ", "Enter"].includes(event.key)) { event.preventDefault(); files.click(); } });
  files.addEventListener("change", () => { addFiles(files.files); files.value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") addFiles(event.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => addFiles(event.clipboardData.files));
  byId("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(["a", "b"]); });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); ask(["a", "b"]); }
  });
  byId("stop").addEventListener("click", () => state.running?.abort());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") state.running?.abort(); });
  byId("new-tokens").addEventListener("input", showLength);
  byId("example").addEventListener("click", loadExample);
  byId("save-plan").addEventListener("click", savePlan);
  byId("save-picture").addEventListener("click", () => savePicture("tokens.png", byId("picture")));
  byId("copy-link").addEventListener("click", () => copyLink().catch((error) => showError(error.message)));
}

const showLength = () => { byId("new-tokens-shown").textContent = `${byId("new-tokens").value} tokens`; };

async function addFiles(files) {
  const images = [...files].filter((file) => /^(image|video)\//.test(file.type));
  if (images.length < files.length) showError("only pictures and videos can be added");
  const large = images.find((file) => file.size > about.limits.megabytes * 1e6);
  if (large) {
    showError(`${large.name} is larger than ${about.limits.megabytes} MB, the limit`);
    return;
  }
  const urls = await Promise.all(images.map(readAsUrl));
  setPictures([...state.pictures, ...urls]);
}

function setPictures(urls) {
  state.pictures = urls;
  byId("thumbnails").replaceChildren(...urls.map((url, at) => element("div", { class: "thumbnail" },
    isVideo(url) ? element("video", { src: url, "aria-label": `video ${at + 1}` })
      : element("img", { src: url, alt: `picture ${at + 1}` }),
    element("button", { type: "button", "aria-label": `remove picture ${at + 1}`, onclick: () => setPictures(state.pictures.filter((_, n) => n !== at)) }, "×"))));
}

async function loadExample() {
  try {
    setPictures([await fetchImage("/api/example")]);
    byId("question").value = "What is written on the sign?";
  } catch (error) {
    showError(error.message);
  }
}

/** Ask the question of the form under the configs of some sides; sides that are not asked keep their results. */
async function ask(sides) {
  const question = byId("question").value.trim();
  showError("");
  if (!question) { showError("type a question first"); return; }
  state.running?.abort();
  const running = new AbortController();
  state.running = running;
  state.asked = { question, pictures: [...state.pictures] };
  byId("stop").disabled = false;
  byId("empty").hidden = true;
  byId("words").hidden = true;
  try {
    for (const side of sides) {
      const config = editors[side].config;
      if (config === null) { delete state.results[side]; continue; }
      await answer(side, config, running.signal);
    }
    status("measuring every layer …");
    for (const side of sides) await inspect(side, running.signal);
    status("");
  } catch (error) {
    status(error.name === "AbortError" ? "stopped" : "");
    if (error.name !== "AbortError") showError(error.message);
  } finally {
    if (state.running === running) {
      state.running = null;
      byId("stop").disabled = true;
      byId("progress").hidden = true;
      byId("copy-link").disabled = false;
    }
    showResults();
  }
}

const status = (text) => { byId("status").textContent = text; };

async function answer(side, config, signal) {
  const result = { name: editors[side].select.value, config, text: "", tokens: [], done: false };
  state.results[side] = result;
  showResults();
  const body = {
    messages: messagesOf(state.asked.question, state.asked.pictures), pruning_config: config,
    max_tokens: Number(byId("new-tokens").value), logprobs: true, trace: "full", prefix_cache: false,
    progress: true, stream_options: { include_usage: true },
  };
  await streamAnswer(body, (chunk) => {
    if (chunk.progress) showProgress(side, chunk.progress);
    if (chunk.usage) Object.assign(result, { usage: chunk.usage, done: true });
    const choice = chunk.choices[0];
    if (!choice) return;
    if (choice.delta.content) {
      result.text += choice.delta.content;
      byId("progress").hidden = true;
      status(`${side.toUpperCase()} answers …`);
    }
    result.tokens.push(...(choice.logprobs?.content || []));
    if (choice.finish_reason) Object.assign(result, chunk.pruning, { finish: choice.finish_reason });
    showResults();
  }, signal);
}

function showProgress(side, { layer, layers, ahead }) {
  byId("progress").hidden = false;
  byId("progress").value = layer / layers;
  status(ahead ? `${ahead} requests are ahead` : `${side.toUpperCase()} reads: layer ${layer} of ${layers}`);
}

async function inspect(side, signal) {
  const result = state.results[side];
  if (!result?.done || !state.asked.pictures.length) return;
  const messages = messagesOf(state.asked.question, state.asked.pictures);
  result.inspection = await request("/api/inspect", { messages, pruning_config: result.config }, signal);
}

function showResults() {
  const { a, b } = state.results;
  byId("answer-b").hidden = !b;
  if (a) showAnswer(byId("answer-a"), "a", a, b);
  if (b) showAnswer(byId("answer-b"), "b", b, a);
  showFigures(byId("figures"), state.results);
  tokens.show(state.results, state.asked?.pictures || []);
}

/** A threshold was dragged: run that side again with it. */
function rerun(side, key, value) {
  const config = { ...state.results[side].config, [key]: value };
  editors[side].set(config);
  ask([side]);
}

async function askWords(index, position) {
  const messages = messagesOf(state.asked.question, state.asked.pictures);
  try {
    showWords(byId("words"), await request("/api/words", { messages, position }), `token ${index} at position ${position}`);
  } catch (error) {
    showError(error.message);
  }
}

async function askPlan(side, body, name) {
  const { trace, visual } = state.results[side].inspection;
  try {
    const { config } = await request("/api/plan", { trace, visual, ...body });
    editors.b.set(config, name);
  } catch (error) {
    showError(error.message);
    return;
  }
  await ask(["b"]);
}

const askForced = (side, stay, go) => askPlan(side, { stay, go }, `${side.toUpperCase()}'s plan, brushed`);
const askControl = (side, control) => askPlan(side, { control }, `${control}, as many tokens`);

function savePlan() {
  const result = state.results[tokens.side];
  saveJson("plan.json", { method: "replay", trace: result.inspection.trace });
}

async function copyLink() {
  const view = {
    question: state.asked.question, pictures: state.asked.pictures, newTokens: byId("new-tokens").value,
    configs: Object.fromEntries(Object.entries(state.results).map(([side, { name, config }]) => [side, { name, config }])),
    tokens: tokens.view,
  };
  const address = `${location.origin}${location.pathname}#view=${await packed(view)}`;
  history.replaceState(null, "", address);
  try {
    await navigator.clipboard.writeText(address);
    status("link copied");
  } catch {
    status("the link is in the address bar");
  }
}

/** Restore the view of the link, if there is one: the same question under the same configs. */
async function restore() {
  const text = new URLSearchParams(location.hash.slice(1)).get("view");
  if (!text) return;
  const view = await unpacked(text);
  showTab("ask");
  setPictures(view.pictures);
  byId("question").value = view.question;
  byId("new-tokens").value = view.newTokens;
  showLength();
  for (const side of ["a", "b"]) {
    const given = view.configs[side];
    if (given) editors[side].set(given.config, given.name);
    else if (side === "b") editors.b.choose("nothing");
  }
  tokens.view = view.tokens;
  await ask(["a", "b"]);
}

function askAgain({ question, pictures }) {
  setPictures(pictures);
  byId("question").value = question;
  showTab("ask");
  ask(["a", "b"]);
}

start().catch((error) => showError(error.message));
