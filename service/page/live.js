// What /metrics says of the last seconds: histograms are summed over models and the routes that score.

const EVERY_MS = 2000;
const ROUTES = ["/v1/rescore", "/v1/rescore/lattice", "/v1/score"];
const WINDOWS_S = [10, 60];
const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** One reading: {at (s), buckets: le -> count, count, outcomes, queue, tokens, age, inflight}. */
export function read(text, at) {
  const reading = { at, buckets: new Map(), count: 0, failed: 0, shed: 0, queue: 0, tokens: 0, age: 0, inflight: 0 };
  const add = {
    rescore_request_duration_seconds_bucket: (labels, value) => {
      const le = labels.le === "+Inf" ? Infinity : Number(labels.le);
      reading.buckets.set(le, (reading.buckets.get(le) ?? 0) + value);
    },
    rescore_request_duration_seconds_count: (_, value) => { reading.count += value; },
    rescore_requests_total: (labels, value) => { if (labels.outcome === "error") reading.failed += value; },
  };
  const sum = {
    rescore_shed_total: "shed", rescore_queue_requests: "queue", rescore_queue_tokens: "tokens",
    rescore_queue_age_seconds: "age", rescore_inflight_requests: "inflight",
  };
  for (const line of text.split("\n")) {
    const [, name, within, value] = SAMPLE.exec(line) ?? [];
    if (name in sum) reading[sum[name]] += Number(value);
    if (!(name in add)) continue;
    const labels = Object.fromEntries([...(within ?? "").matchAll(LABEL)].map(([, key, text_]) => [key, text_]));
    if (ROUTES.includes(labels.route)) add[name](labels, Number(value));
  }
  return reading;
}

/** Requests, and their quantiles in seconds, between two readings. */
export function between(older, newer) {
  const seconds = newer.at - older.at;
  const count = newer.count - older.count;
  const cumulative = [...newer.buckets.entries()]
    .map(([le, value]) => [le, value - (older.buckets.get(le) ?? 0)])
    .sort((a, b) => a[0] - b[0]);
  return {
    perSecond: seconds > 0 ? count / seconds : 0,
    p50: quantile(0.5, cumulative),
    p99: quantile(0.99, cumulative),
    failed: newer.failed - older.failed,
    shed: newer.shed - older.shed,
  };
}

/** As Prometheus' histogram_quantile: linear within a bucket; null without observations. */
function quantile(q, cumulative) {
  const total = cumulative.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const wanted = q * total;
  let [low, below] = [0, 0];
  for (const [le, upTo] of cumulative) {
    if (upTo >= wanted) return le === Infinity ? low : low + ((le - low) * (wanted - below)) / (upTo - below);
    [low, below] = [le, upTo];
  }
  return low;
}

/** Read /metrics for as long as the page is looked at; show(readings, error) after each time. */
export function watch(headers, show) {
  let readings = [];
  const poll = async () => {
    if (!document.hidden) {
      try {
        const response = await fetch("metrics", { headers: headers(), signal: AbortSignal.timeout(EVERY_MS) });
        if (!response.ok) throw new Error(`/metrics answers ${response.status}; it may have a port of its own`);
        const reading = read(await response.text(), performance.now() / 1000);
        if (readings.length && reading.count < readings.at(-1).count) readings = []; // another process
        readings.push(reading);
        readings = readings.filter((one) => reading.at - one.at <= WINDOWS_S.at(-1) + 3);
        show(summary(readings), null);
      } catch (error) {
        show(null, error.name === "TimeoutError" || error.name === "TypeError" ? "the server does not answer" : error.message);
      }
    }
    setTimeout(poll, EVERY_MS);
  };
  poll();
}

function summary(readings) {
  const now = readings.at(-1);
  const windows = WINDOWS_S.map((seconds) => {
    const older = readings.find((one) => now.at - one.at <= seconds + EVERY_MS / 2000) ?? now;
    return { seconds, ...between(older, now) };
  });
  const rates = readings.slice(1).map((one, at) => between(readings[at], one).perSecond);
  return { now, windows, rates };
}
