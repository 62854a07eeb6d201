// The reply on the page: problem, utterances, verdict, ranking, words, times.

import { el, extent, shown, signed, stack, strip } from "./drawing.js";
import { canRank, changedWords, ranked, terms } from "./scoring.js";

const MAX_ROWS = 100;
const HOT_NATS = 10; // from here on a word is as unlikely as the color can say
const KINDS = { am: "am", graph: "graph", lm: "LM", extra: "extra", bonus: "bonus" };
const STAGES = ["tokenize", "queue", "forward", "combine"];
const $ = (id) => document.getElementById(id);

/** Problem details, each pointer with the line it means; toLine is called when one is chosen. */
export function showProblem(problem, lineOf, toLine) {
  const places = (problem.errors ?? []).map(({ pointer, message }) => {
    const line = lineOf(pointer);
    const place = line === null
      ? el("code", {}, pointer || "body")
      : el("button.link", { type: "button", title: `Go to line ${line}`, onclick: () => toLine(line) }, `line ${line}`);
    return el("li", {}, place, line === null ? "" : " ", line === null ? "" : el("code", {}, pointer), ` ${message}`);
  });
  $("problem").replaceChildren(
    el("strong", {}, [problem.status, problem.code].filter(Boolean).join(" ") || "Not sent"),
    ` ${problem.title ?? ""}`,
    el("p", {}, problem.detail ?? ""),
    places.length ? el("ul", {}, ...places) : "",
    problem.request_id ? el("p.note", {}, "request_id ", el("code", {}, problem.request_id)) : "",
  );
  $("problem").hidden = false;
}

export function clearAnswer() {
  $("problem").hidden = true;
  $("utterances").hidden = true;
  $("timing").hidden = true;
  $("columns").hidden = true;
  for (const id of ["verdict", "legend", "ranking", "utterances"]) $(id).replaceChildren();
}

/** One button per utterance, if there are several. */
export function showUtterances(results, chosen, choose) {
  $("utterances").hidden = results.length < 2;
  $("utterances").replaceChildren(...results.map((one, at) => el(
    "button", { type: "button", "aria-pressed": String(at === chosen), onclick: () => choose(at) },
    one.id ?? `#${at + 1}`,
    el("span.mark", {}, one.error ? " failed" : one.degraded.length ? " degraded" : one.changed ? " changed" : ""),
  )));
}

/**
 * One utterance under some weights. view: {utterance, weights, posteriorScale, isServers, formula, againstZero,
 * open: Set of input ranks, showsAll, model}. Returns nothing; showAll is called when all rows are wanted.
 */
export function showRanking(view, showAll) {
  const { utterance, weights } = view;
  const isKnown = canRank(utterance, weights);
  const hypotheses = isKnown && !view.isServers
    ? ranked(utterance.hypotheses, weights, view.posteriorScale)
    : utterance.hypotheses.map((one) => ({ ...one, parts: terms(one, weights) }));
  const first = hypotheses.find((one) => one.input_rank === 1);
  const bars = isKnown && weights.mode === "log-linear" ? barsOf(hypotheses, view.againstZero ? null : first) : null;
  const reach = bars && extent(bars);
  $("verdict").replaceChildren(...verdict(hypotheses, first, view, isKnown));
  $("legend").replaceChildren(...legend(hypotheses, bars, view.againstZero || !first));
  $("columns").hidden = false;
  const rows = view.showsAll ? hypotheses : hypotheses.slice(0, MAX_ROWS);
  $("ranking").replaceChildren(
    ...rows.map((one, at) => row(one, bars && { parts: bars[at], reach }, { ...view, first })),
    hypotheses.length > rows.length
      ? el("li.more", {}, el("button", { type: "button", onclick: showAll }, `Show all ${hypotheses.length}`)) : "",
  );
}

/** Per hypothesis its weighted terms, or what they add to those of a reference. */
function barsOf(hypotheses, reference) {
  const base = new Map((reference?.parts ?? []).map((part) => [part.name, part.value]));
  return hypotheses.map(({ parts }) => parts.map((part) => ({ ...part, value: part.value - (base.get(part.name) ?? 0) })));
}

function verdict(hypotheses, first, view, isKnown) {
  const [best, second] = hypotheses;
  const said = [];
  if (view.utterance.degraded.length) {
    said.push(el("strong.warn", {}, `Degraded: ${view.utterance.degraded.join(", ")}. `));
  }
  if (best.input_rank !== 1) {
    const lead = first?.score != null && best.score != null ? `, by ${shown(best.score - first.score)}` : "";
    said.push(el("strong", {}, `Input ${best.input_rank} replaces the decoder's choice${lead}.`));
  } else {
    const lead = second?.score != null && best.score != null ? `, ahead by ${shown(best.score - second.score)}` : "";
    said.push(el("strong", {}, `The decoder's choice stays${lead}.`));
  }
  if (view.isServers) said.push(" Score = ", el("code", {}, view.formula));
  else if (isKnown) said.push(" Re-ranked in this page from the components of the reply.");
  else said.push(" These weights need the server: rescore to see their effect.");
  return said;
}

function legend(hypotheses, bars, isFromZero) {
  if (!bars) return [];
  const kinds = [...new Set(bars[0].map(({ kind }) => kind))];
  return [
    ...kinds.map((kind) => el("span", {}, el(`i.${kind}`), KINDS[kind])),
    el("span", {}, el("i.sum"), "sum"),
    el("span.note", {}, isFromZero ? "nats from zero" : "nats more or less than input 1"),
  ];
}

function row(one, bar, view) {
  const moved = one.input_rank - one.rank;
  const isBest = one.rank === 1;
  const isFirst = one.input_rank === 1;
  const said = bar?.parts.map(({ name, value }) => `${name} ${signed(value)}`).join(", ");
  const summary = el("summary", {},
    el("span.rank", {}, String(one.rank)),
    el(`span.move.${moved > 0 ? "up" : moved < 0 ? "down" : "same"}`, { title: `the decoder's rank was ${one.input_rank}` },
      `${moved > 0 ? "▲" : moved < 0 ? "▼" : "·"} ${one.input_rank}`),
    el("span.text", {}, ...words(one, view), ...badges(isBest, isFirst, one.oov)),
    el("span.score", {}, shown(one.score)),
    el("span.posterior", {}, one.posterior === undefined || one.posterior === null ? "" : one.posterior.toFixed(3)),
    bar ? stack(bar.parts, bar.reach, said) : "",
  );
  const details = el("details", { open: view.open.has(one.input_rank) }, summary, numbers(one, view.weights));
  details.addEventListener("toggle", () => view.open[details.open ? "add" : "delete"](one.input_rank));
  return el(`li${isBest ? ".best" : ""}`, {}, details);
}

function badges(isBest, isFirst, oov) {
  return [
    isBest ? el("b.badge", {}, "best") : "",
    isFirst ? el("b.badge.quiet", {}, "decoder's choice") : "",
    oov.length ? el("b.badge.warn", { title: oov.join(" ") }, `${oov.length} OOV`) : "",
  ].filter(Boolean);
}

/** The text, what is new in it underlined; or its words as the LM reads them, with log-probabilities. */
function words(one, { model, first }) {
  const scored = one.words?.[model];
  if (!scored && one.text.trim() === "") return [el("i", {}, "silence")];
  if (!scored) {
    return changedWords(first?.text ?? one.text, one.text)
      .flatMap(({ word, isNew }) => [isNew ? el("u", { title: "not in the decoder's choice" }, word) : word, " "]);
  }
  const end = one.components.lm[model] - scored.reduce((sum, { log_prob }) => sum + log_prob, 0);
  return [...scored, { word: "</s>", log_prob: end }].map(({ word, log_prob }) => {
    const cell = el("span.word", { title: `${word} ${shown(log_prob)} nats` }, word, el("small", {}, shown(log_prob, 1)));
    cell.style.setProperty("--heat", `${(Math.min(-log_prob / HOT_NATS, 1) * 100).toFixed(0)}%`);
    return cell;
  });
}

function numbers(one, weights) {
  const { am, graph, lm, extra } = one.components;
  const cells = [
    ["am", am, weights.am_scale], ["graph", graph, weights.graph_scale],
    ...Object.entries(lm ?? {}).map(([name, value]) => [`lm ${name}`, value, weights.lm_scales[name]]),
    ...Object.entries(extra).map(([name, value]) => [name, value, weights.extra[name] ?? 0]),
  ].filter(([, value]) => value !== null);
  const counts = [["words", one.num_words, weights.word_bonus], ["tokens", one.num_tokens, weights.token_bonus],
    ["characters", one.num_chars, weights.char_bonus]];
  const line = (digits) => ([name, value, weight]) => el("tr", {},
    el("th", { scope: "row" }, name), el("td", {}, shown(value, digits)), el("td", {}, `× ${shown(weight, 3).replace(/\.?0+$/, "")}`),
    el("td", {}, value === null ? "–" : shown(value * weight)));
  return el("div.numbers", {}, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "term"),
    el("th", { scope: "col" }, "value"), el("th", { scope: "col" }, "weight"), el("th", { scope: "col" }, "product"))),
    el("tbody", {}, ...cells.map(line(3)), ...counts.map(line(0)))),
    one.oov.length ? el("p.note", {}, `Outside the vocabulary: ${one.oov.join(" ")}`) : "");
}

/** Where the time of the request went; what is left of the browser's own measure is the way. */
export function showTiming(timing, roundTripMs, usage) {
  const stages = STAGES.map((name) => ({ kind: name, value: timing[`${name}_ms`] }));
  const rest = Math.max(timing.total_ms - stages.reduce((sum, { value }) => sum + value, 0), 0);
  const parts = [...stages, { kind: "rest", value: rest }];
  const total = parts.reduce((sum, { value }) => sum + value, 0) || 1;
  const said = parts.map(({ kind, value }) => `${kind} ${value.toFixed(2)} ms`);
  $("timing").replaceChildren(
    el("h3", {}, `Server ${timing.total_ms.toFixed(2)} ms`,
      el("span.note", {}, ` · round trip ${roundTripMs.toFixed(1)} ms · ${usage.tokens} token scores from ${usage.tree_nodes} computed`)),
    strip(parts, total, said.join(", ")),
    el("div.legend", {}, ...parts.map(({ kind, value }) => el("span", {}, el(`i.${kind}`), `${kind} ${value.toFixed(2)} ms`))),
  );
  $("timing").hidden = false;
}
