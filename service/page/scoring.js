// The server's arithmetic, on the components of its reply, so that a slider needs no request.
// What quantized_lm/combine.py calls totals, terms and posterior; mode "linear" is left to the server.

/** The weighted terms of one hypothesis: [{name, kind, value}]; null if a score it needs is missing. */
export function terms(hypothesis, weights) {
  const { am, graph, lm, extra } = hypothesis.components;
  const found = [term("am", "am", weights.am_scale, am), term("graph", "graph", weights.graph_scale, graph)];
  for (const [name, scale] of Object.entries(weights.lm_scales)) {
    found.push(term(`lm ${name}`, "lm", scale, lm?.[name]));
  }
  for (const [name, scale] of Object.entries(weights.extra)) found.push(term(name, "extra", scale, extra?.[name]));
  found.push(
    term("word bonus", "bonus", weights.word_bonus, hypothesis.num_words),
    term("token bonus", "bonus", weights.token_bonus, hypothesis.num_tokens),
    term("char bonus", "bonus", weights.char_bonus, hypothesis.num_chars),
    term("bias", "bonus", weights.bias, 1),
  );
  const counting = found.filter((one) => one !== null);
  if (counting.some((one) => one.value === null)) return null;
  const by = divisor(hypothesis, weights);
  return counting.map((one) => ({ ...one, value: one.value / by }));
}

function term(name, kind, scale, score) {
  if (scale === 0) return null;
  return { name, kind, value: score === null || score === undefined ? null : scale * score };
}

function divisor(hypothesis, weights) {
  const length = (count) => Math.max(count + weights.length_offset, 1);
  switch (weights.length_norm) {
    case "tokens": return length(hypothesis.num_tokens);
    case "words": return length(hypothesis.num_words);
    case "gnmt": return ((5 + hypothesis.num_tokens + weights.length_offset) / 6) ** weights.gnmt_alpha;
    default: return 1;
  }
}

/** Whether the page can rank as the server would: every term known, every hypothesis complete. */
export function canRank(utterance, weights) {
  return weights.mode === "log-linear" && utterance.hypotheses.every((one) => terms(one, weights) !== null);
}

/** The hypotheses of a reply in the order these weights give; ties keep the decoder's order. */
export function ranked(hypotheses, weights, posteriorScale) {
  const scored = hypotheses.map((one) => {
    const parts = terms(one, weights);
    return { ...one, parts, score: parts.reduce((sum, part) => sum + part.value, 0) };
  });
  scored.sort((a, b) => b.score - a.score || a.input_rank - b.input_rank);
  const powers = scored.map((one) => Math.exp(posteriorScale * (one.score - scored[0].score)));
  const sum = powers.reduce((a, b) => a + b, 0);
  return scored.map((one, at) => ({ ...one, rank: at + 1, posterior: powers[at] / sum }));
}

const MAX_COMPARED = 200; // words; beyond it nobody reads them one by one

/** The words of a text, and which of them a longest common subsequence with the reference lacks. */
export function changedWords(reference, text) {
  const [a, b] = [reference, text].map((one) => one.split(/\s+/).filter(Boolean));
  if (Math.max(a.length, b.length) > MAX_COMPARED) return b.map((word) => ({ word, isNew: false }));
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const found = [];
  for (let i = 0, j = 0; j < b.length;) {
    if (i < a.length && a[i] === b[j]) [i, j] = [i + 1, found.push({ word: b[j], isNew: false })];
    else if (i < a.length && length[i + 1][j] >= length[i][j + 1]) i += 1;
    else j = found.push({ word: b[j], isNew: true });
  }
  return found;
}
