// The page's own story: read the editor and the weights, ask, show; re-rank while a slider moves.

import { clearAnswer, showProblem, showRanking, showTiming, showUtterances } from "./answer.js";
import { asked, curl, LineError } from "./asking.js";
import { el, milliseconds, sparkline } from "./drawing.js";
import { watch } from "./live.js";

const WEIGHTS = ["am_scale", "graph_scale", "lm_scale", "word_bonus"];
const SLIDERS = { lm_scale: { low: () => 0, least: 2 }, word_bonus: { low: (high) => -high, least: 5 } };
const $ = (id) => document.getElementById(id);
const state = { reply: null, sent: null, chosen: 0, touched: {}, open: new Set(), showsAll: false, asking: null, examples: null };

const headers = () => ($("key").value ? { Authorization: `Bearer ${$("key").value}` } : {});

// -- weights ---------------------------------------------------------------------------------

function setWeight(name, value) {
  $(name).value = String(Number(value.toFixed(6)));
  const slider = SLIDERS[name];
  if (!slider) return;
  const range = $(`${name}-range`);
  if (Math.abs(value) > Number(range.max) || !range.dataset.high) {
    const wanted = Math.max(2 * Math.abs(value), slider.least);
    const power = 10 ** Math.floor(Math.log10(wanted));
    const high = [1, 2, 5, 10].map((step) => step * power).find((step) => step >= wanted);
    range.dataset.high = "set";
    Object.assign(range, { min: slider.low(high), max: high, step: high / 200 });
  }
  range.value = value;
}

function givenWeights() {
  const all = {};
  for (const name of WEIGHTS) if ($(name).value !== "" && !$(name).disabled) all[name] = $(name).valueAsNumber;
  return { all, touched: state.touched };
}

/** The reply's weights, and over them what stands in the fields now. */
function liveWeights() {
  const { lm_scale: lmScale, ...others } = givenWeights().all;
  const scales = { ...state.reply.weights.lm_scales };
  if (lmScale !== undefined) for (const name of Object.keys(scales)) scales[name] = lmScale;
  return { ...state.reply.weights, ...others, lm_scales: scales };
}

function onWeight(name, value) {
  if (!Number.isFinite(value)) return;
  setWeight(name, value);
  state.touched[name] = value;
  showCurl();
  if (state.reply) showChosen(false);
}

// -- the editor ------------------------------------------------------------------------------

function showLines(marked = []) {
  const count = $("input").value.split("\n").length;
  $("gutter").replaceChildren(...Array.from({ length: count }, (_, at) => el(
    marked.includes(at + 1) ? "b.fault" : "span", {}, String(at + 1))));
  $("gutter").scrollTop = $("input").scrollTop;
}

function toLine(line) {
  const input = $("input");
  const lines = input.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  input.focus();
  input.setSelectionRange(start, start + lines[line - 1].length);
  input.scrollTop = Math.max(0, (line - 3) * Number.parseFloat(getComputedStyle(input).lineHeight));
}

function fill(text, weights) {
  $("input").value = text;
  state.touched = {};
  for (const [name, value] of Object.entries(weights)) setWeight(name, value);
  showLines();
  showCurl();
}

// -- asking ----------------------------------------------------------------------------------

function request() {
  const { body, ...rest } = asked($("input").value, givenWeights(), $("model").value);
  const options = { ...body.options, ...($("words").checked ? { return_words: true } : {}) };
  return { ...rest, body: Object.keys(options).length ? { ...body, options } : body };
}

function showCurl() {
  try {
    $("curl").textContent = curl(new URL("v1/rescore", document.baseURI), request().body, !$("key-form").hidden);
  } catch (error) {
    $("curl").textContent = error instanceof LineError ? `line ${error.line}: ${error.message}` : String(error);
  }
}

function refuse(problem, lineOf) {
  clearAnswer();
  state.reply = null;
  showProblem(problem, lineOf, toLine);
  showLines((problem.errors ?? []).map(({ pointer }) => lineOf(pointer)));
}

async function ask() {
  state.asking?.abort();
  const asking = state.asking = new AbortController();
  let sent;
  try {
    sent = request();
  } catch (error) {
    if (!(error instanceof LineError)) throw error;
    refuse({ detail: `Line ${error.line} ${error.message}.`, errors: [{ pointer: "", message: error.message }] }, () => error.line);
    return;
  }
  showCurl();
  $("run").setAttribute("aria-busy", "true");
  try {
    const startedMs = performance.now();
    const response = await fetch("v1/rescore", {
      method: "POST", signal: asking.signal, body: JSON.stringify(sent.body),
      headers: { "Content-Type": "application/json", ...headers() },
    });
    const answer = await response.json();
    take(response, answer, sent, performance.now() - startedMs);
  } catch (error) {
    if (error.name !== "AbortError") refuse({ detail: `No answer that can be read: ${error.message}.` }, () => null);
  } finally {
    if (state.asking === asking) $("run").removeAttribute("aria-busy");
  }
}

function take(response, answer, sent, roundTripMs) {
  if (!response.ok) {
    refuse(answer, sent.lineOf);
    if (response.status === 401) needKey();
    return;
  }
  showLines();
  Object.assign(state, { reply: answer, sent, showsAll: false });
  state.chosen = Math.min(state.chosen, answer.results.length - 1);
  const scales = Object.values(answer.weights.lm_scales);
  for (const id of ["lm_scale", "lm_scale-range"]) $(id).disabled = scales.length > 1;
  const used = { ...answer.weights, lm_scale: scales[0] };
  for (const name of WEIGHTS) if (!$(name).disabled) setWeight(name, used[name]);
  $("revision").textContent = answer.revision.slice(0, 19);
  $("revision").title = answer.revision;
  $("problem").hidden = true;
  showChosen(true);
  showTiming(answer.timing, roundTripMs, answer.usage);
}

function showChosen(isServers) {
  const { reply, sent } = state;
  showUtterances(reply.results, state.chosen, (at) => { state.chosen = at; state.open.clear(); showChosen(isServers); });
  const utterance = reply.results[state.chosen];
  $("problem").hidden = !utterance.error;
  if (utterance.error) {
    for (const id of ["verdict", "legend", "ranking"]) $(id).replaceChildren();
    showProblem(utterance.error, sent.lineOf, toLine);
    showLines(utterance.error.errors.map(({ pointer }) => sent.lineOf(pointer)));
    return;
  }
  showRanking({
    utterance, isServers, weights: liveWeights(), posteriorScale: sent.body.options?.posterior_scale ?? 1,
    formula: reply.formula, againstZero: $("against").value === "zero", open: state.open, showsAll: state.showsAll,
    model: reply.model.split(",")[0],
  }, () => { state.showsAll = true; showChosen(isServers); });
  state.isServers = isServers;
}

function needKey() {
  $("key-form").hidden = false;
  showCurl();
  $("key").focus();
}

// -- models and this server ------------------------------------------------------------------

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) return needKey();
  const { models } = await response.json();
  $("model").replaceChildren(...models.map(({ id }) => el("option", { value: id }, id)));
  $("model").disabled = models.length < 2;
  showRevision(models);
  $("model").onchange = () => { showRevision(models); state.touched = {}; ask(); };
}

function showRevision(models) {
  const model = models.find(({ id }) => id === $("model").value);
  $("revision").textContent = model.revision.slice(0, 19);
  $("revision").title = `${model.revision} · ${model.architecture} · ${model.bits_per_weight.toFixed(2)} bits per weight · ${model.backend}`;
}

function showLive(summary, fault) {
  $("live-note").hidden = !fault;
  $("live-note").textContent = fault ?? "";
  if (!summary) return $("live").replaceChildren();
  const { now, windows, rates } = summary;
  const entry = (name, ...values) => el("div", {}, el("dt", {}, name), ...values.map((value) => el("dd", {}, value)));
  $("live").replaceChildren(
    ...windows.map((one) => entry(`${one.seconds} s`, `${one.perSecond.toFixed(one.perSecond < 10 ? 1 : 0)}/s`,
      `p50 ${milliseconds(one.p50)}`, `p99 ${milliseconds(one.p99)}`,
      ...(one === windows.at(-1) ? [`${one.failed} failed`, `${one.shed} shed`] : []))),
    entry("queue", `${now.queue} lists`, `${now.tokens} nodes`, now.queue ? `oldest ${milliseconds(now.age)}` : "idle"),
    rates.length > 1 ? el("div.trend", {}, el("dt", {}, "requests/s"), el("dd", {}, sparkline(rates, "Requests per second of the last minute"))) : "",
  );
}

// -- start -----------------------------------------------------------------------------------

function listen() {
  for (const name of WEIGHTS) {
    $(name).oninput = () => onWeight(name, $(name).valueAsNumber);
    if (SLIDERS[name]) $(`${name}-range`).oninput = () => onWeight(name, $(`${name}-range`).valueAsNumber);
  }
  $("input").oninput = () => { state.touched = {}; showLines(); showCurl(); };
  $("input").onscroll = () => { $("gutter").scrollTop = $("input").scrollTop; };
  $("run").onclick = ask;
  $("words").onchange = ask;
  $("against").onchange = () => { if (state.reply) showChosen(state.isServers); };
  $("key-form").onsubmit = (event) => { event.preventDefault(); start(); };
  $("example-list").onclick = () => { fill(...state.examples.list); ask(); };
  $("example-json").onclick = () => { fill(...state.examples.json); ask(); };
  $("copy").onclick = copy;
  document.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
}

/** To the clipboard, which browsers give to secure pages only; elsewhere the text is selected. */
async function copy() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => { $("copy").textContent = "Copy"; }, 2000);
}

async function loadExamples() {
  const sample = await (await fetch("page/example.json")).json();
  const lines = sample.utterances[0].hypotheses.map(({ text, am_score: am }) => `${text}\t${am}`);
  const weights = { graph_scale: 0, ...sample.weights };
  state.examples = { list: [lines.join("\n"), weights], json: [JSON.stringify(sample, null, 1), weights] };
}

async function start() {
  await loadModels();
  await ask();
}

listen();
watch(headers, showLive);
await loadExamples();
fill(...state.examples.list);
await start();
