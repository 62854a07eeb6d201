// Elements and pictures. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
export const MINUS = "−";

/** An element: el("li.best", {hidden: false}, child, "text"); attributes but those that are properties. */
export function el(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const made = document.createElement(tag);
  made.classList.add(...classes);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A number with a real minus sign; "–" where there is none. */
export function shown(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? MINUS + text : text;
}

export function signed(value, digits = 2) {
  return value > 0 && Number(value.toFixed(digits)) !== 0 ? `+${shown(value, digits)}` : shown(value, digits);
}

/** Milliseconds with three digits that count. */
export function milliseconds(seconds) {
  if (seconds === null) return "–";
  const ms = seconds * 1000;
  return `${ms >= 100 ? ms.toFixed(0) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** The smallest and largest stack over all rows of [{kind, value}], 0 included. */
export function extent(rows) {
  const ends = rows.map((parts) => [
    parts.reduce((sum, { value }) => sum + Math.min(value, 0), 0),
    parts.reduce((sum, { value }) => sum + Math.max(value, 0), 0),
  ]);
  return [Math.min(0, ...ends.map(([low]) => low)), Math.max(0, ...ends.map(([, high]) => high))];
}

/** Signed parts stacked from zero, negative ones to the left, and a mark at their sum. */
export function stack(parts, [low, high], label) {
  const width = high - low || 1;
  const x = (value) => ((value - low) / width) * 1000;
  const shapes = [];
  let [left, right] = [0, 0];
  for (const { kind, value } of parts) {
    const from = value < 0 ? (left += value) : right;
    if (value > 0) right += value;
    shapes.push(svg("rect", { class: kind, x: x(from), y: 2, width: x(from + Math.abs(value)) - x(from), height: 8 }));
  }
  const sum = parts.reduce((total, { value }) => total + value, 0);
  shapes.push(
    svg("rect", { class: "zero", x: Math.min(x(0), 998.5), y: 0, width: 1.5, height: 12 }),
    svg("rect", { class: "sum", x: Math.min(Math.max(x(sum) - 2, 0), 996), y: 0, width: 4, height: 12 }),
  );
  return svg("svg", { class: "stack", viewBox: "0 0 1000 12", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...shapes);
}

/** Positive parts one after another, of all that there is. */
export function strip(parts, total, label) {
  let at = 0;
  const shapes = parts.map(({ kind, value }) => {
    const shape = svg("rect", { class: kind, x: (at / total) * 1000, y: 0, width: (value / total) * 1000, height: 10 });
    at += value;
    return shape;
  });
  return svg("svg", { class: "strip", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": label }, ...shapes);
}

/** A line through values from 0 up. */
export function sparkline(values, label) {
  const top = Math.max(...values, 1e-9);
  const step = 100 / Math.max(values.length - 1, 1);
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(23 - (value / top) * 22).toFixed(1)}`).join(" ");
  return svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("polyline", { points, "vector-effect": "non-scaling-stroke" }));
}
