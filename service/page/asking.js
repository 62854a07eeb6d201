// From what stands in the editor to a request, and from a pointer into that request back to a line.

export class LineError extends Error {
  constructor(line, message) {
    super(message);
    this.line = line;
  }
}

class LocatedError extends Error {
  constructor(offset) {
    super();
    this.offset = offset;
  }
}

/** The body of a request: {body, isJson, lineOf: pointer -> line or null}. Throws LineError. */
export function asked(text, weights, model) {
  return text.trimStart().startsWith("{") ? askedJson(text, weights, model) : askedList(text, weights, model);
}

function askedList(text, weights, model) {
  const hypotheses = [];
  const lines = [];
  text.split("\n").forEach((raw, at) => {
    const line = raw.replace(/\r$/, "");
    if (line.trim() === "") return;
    const [words, ...scores] = line.split("\t");
    if (scores.length > 2) throw new LineError(at + 1, `has ${scores.length} scores; need am_score and graph_score, or fewer`);
    const hypothesis = { text: words.trim() };
    scores.forEach((score, which) => {
      if (score.trim() !== "") hypothesis[["am_score", "graph_score"][which]] = number(score, at + 1);
    });
    hypotheses.push(hypothesis);
    lines.push(at + 1);
  });
  if (hypotheses.length === 0) throw new LineError(1, "there is no hypothesis; need one per line");
  const hasScores = hypotheses.some((one) => "am_score" in one);
  const body = {
    ...(model ? { model } : {}),
    utterances: [{ hypotheses }],
    weights: { ...weights.all, ...(hasScores ? {} : { am_scale: 0 }) },
  };
  const lineOf = (pointer) => lines[Number(/^\/utterances\/0\/hypotheses\/(\d+)/.exec(pointer)?.[1])] ?? null;
  return { body, isJson: false, lineOf };
}

function number(text, line) {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new LineError(line, `score is “${text.trim()}”; need a number after the tab`);
  return value;
}

function askedJson(text, weights, model) {
  let body;
  try {
    body = JSON.parse(text);
  } catch (error) {
    throw new LineError(lineAt(text, locate(text, new Map()) ?? text.length), `is not JSON: ${error.message}`);
  }
  if (Object.keys(weights.touched).length) body.weights = { ...body.weights, ...weights.touched };
  if (model && !body.model && !body.lms) body = { model, ...body };
  const starts = new Map();
  locate(text, starts);
  const lineOf = (pointer) => {
    let known = pointer;
    while (known && !starts.has(known)) known = known.slice(0, known.lastIndexOf("/"));
    return known ? lineAt(text, starts.get(known)) : null;
  };
  return { body, isJson: true, lineOf };
}

function lineAt(text, offset) {
  return text.slice(0, offset).split("\n").length;
}

/**
 * Fill starts with JSON pointer -> offset of the value, or of its key in an object; returns the offset of what is
 * no JSON, or null. Browsers' own messages differ, and some do not say where.
 */
function locate(text, starts) {
  const tokens = /"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+|"/g;
  const isScalar = (token) => /^(".*"|-?\d[\d.eE+-]*|true|false|null)$/s.test(token);
  let token = tokens.exec(text);
  const fail = () => { throw new LocatedError(token?.index ?? text.length); };
  const take = (expected) => {
    if (token?.[0] !== expected) fail();
    token = tokens.exec(text);
  };
  const value = (pointer, offset) => {
    starts.set(pointer, offset);
    if (token?.[0] === "{") members(pointer, "{", "}");
    else if (token?.[0] === "[") members(pointer, "[", "]");
    else if (token && isScalar(token[0])) token = tokens.exec(text);
    else fail();
  };
  const members = (pointer, open, close) => {
    take(open);
    for (let at = 0; token?.[0] !== close; at += 1) {
      if (at) take(",");
      const offset = token?.index;
      let name = String(at);
      if (open === "{") {
        if (!token?.[0].endsWith('"') || !isScalar(token[0])) fail();
        name = token[0].slice(1, -1).replaceAll("~", "~0").replaceAll("/", "~1");
        token = tokens.exec(text);
        take(":");
      }
      value(`${pointer}/${name}`, offset);
    }
    take(close);
  };
  try {
    value("", 0);
    return token?.index ?? null;
  } catch (error) {
    if (!(error instanceof LocatedError)) throw error;
    return error.offset;
  }
}

/** The request as a command for a POSIX shell; the key is the reader's to fill in. */
export function curl(url, body, hasKey) {
  return [
    `curl -sS '${url}' \\`,
    "  -H 'Content-Type: application/json' \\",
    ...(hasKey ? ['  -H "Authorization: Bearer $SECONDPASS_API_KEY" \\'] : []),
    "  --data-binary @- <<'JSON'",
    JSON.stringify(body, null, 1),
    "JSON",
  ].join("\n");
}
